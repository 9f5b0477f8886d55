"""Annotation files and pictures damaged at random: the reader ends in records or in BadInput, never in another error, a crash or a hang."""
import copy
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vfmkd_nb.core.coco import doctor, encode_rle, object_mask, read_coco, read_image
from vfmkd_nb.core.config import BadInput

WORDS = [None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 1e308, -1e308, float("nan"), float("inf"), 0.5, "", "1", "a.png", "../a.png", "\0", [], [[]], [[[]]], {}, {"size": [64, 64]},
         {"counts": "1"}, {"size": [64, 64], "counts": [4096]}, {"size": [64, 64], "counts": "0"}, {"size": [1e9, 1e9], "counts": [1]}, [0, 0, 1, 1], [[0, 0, 1, 1]], [[1e9] * 6],
         [[0, 0, 1e9, 1e9, 0, 5]], [[-2**31, 5, 2**31, 9, 4, 4]], "é", "x" * 5000]  # fmt: skip


def _good() -> dict:
    mask = np.zeros((64, 64), bool)
    mask[10:40, 5:50] = True
    shapes = ([[5, 10, 50, 10, 50, 40, 5, 40]], encode_rle(mask), encode_rle(mask, compressed=False))
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(3)],
        "categories": [{"id": 1, "name": "part", "supercategory": "x"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 1350, "bbox": [5, 10, 45, 30], "segmentation": s} for i, s in enumerate(shapes)],
    }


def _damage(value, rng: random.Random):
    """A copy in which one value, at a random depth, is replaced, removed or repeated."""
    value = copy.deepcopy(value)
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return value
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        what = rng.random()
        if isinstance(node[key], str) and what < 0.3:
            i = rng.randrange(len(node[key]) + 1)
            node[key] = node[key][:i] + chr(rng.randrange(1, 300)) + node[key][i + 1 :]
        elif what < 0.8:
            node[key] = rng.choice(WORDS)
        elif what < 0.9 or isinstance(node, dict):
            del node[key]
        else:
            node.append(copy.deepcopy(node[key]))
        return value


def _folder(path):
    (path / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(path / "images" / f"{i}.png")
    return path


def fuzz_annotations(path, rounds: int, seed: int) -> int:
    """Read `rounds` damaged files; the number of those that were refused. Run in a process of its own: pycocotools can kill it."""
    rng, refused = random.Random(seed), 0
    _folder(path)
    for _ in range(rounds):
        content = _good()
        for _ in range(rng.randint(1, 3)):
            content = _damage(content, rng)
        text = json.dumps(content).encode()
        if rng.random() < 0.1:
            i = rng.randrange(len(text))
            text = text[:i] + bytes([rng.randrange(256)]) + text[i + rng.randrange(3) :]
        (path / "a.json").write_bytes(text)
        doctor(path / "a.json", path / "images")
        try:
            data = read_coco(path / "a.json", path / "images")
        except BadInput as e:
            refused += 1
            assert "\n" not in str(e) and len(str(e)) < 1000, str(e)
            continue
        for record in data.images:
            assert read_image(record).shape == (3, 64, 64)
            for obj in record.objects:
                if obj.segmentation is not None:
                    assert object_mask(obj, 64, 64).shape == (64, 64)
    return refused


def test_damaged_annotations(tmp_path):
    program = f"import sys; sys.path.insert(0, {str(__file__).rsplit('/', 1)[0]!r})\nfrom pathlib import Path\nimport test_coco_fuzz\nprint(test_coco_fuzz.fuzz_annotations(Path({str(tmp_path)!r}), 600, 0))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 20 < int(done.stdout) < 500  # both ends occur


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore::PIL.Image.DecompressionBombWarning")  # Pillow's word on broken metadata
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_damaged_pictures(tmp_path, format):
    """Bytes changed or cut anywhere: a picture or BadInput."""
    rng = random.Random(1)
    path = tmp_path / "a"
    y, x = np.mgrid[:48, :64]
    Image.fromarray(np.dstack([x * 3, y * 4, x + y]).astype(np.uint8)).save(path, format=format)
    good = path.read_bytes()
    for _ in range(150):
        text = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(min(len(text), rng.choice([64, len(text)])))] = rng.randrange(256)
        path.write_bytes(text[: rng.choice([len(text), rng.randrange(len(text))])])
        try:
            assert read_image(path).ndim == 3
        except BadInput as e:
            assert str(path) in str(e)
