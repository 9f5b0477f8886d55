"""The panoptic chapter on real COCO panoptic data: read, judged against itself, damaged, and learned from (too few images for any claim about quality)."""
import json
import shutil

import numpy as np
import pytest
from conftest import shared_data
from PIL import Image

from vfmkd_nb.core.cli import main
from vfmkd_nb.core.data import make_loader
from vfmkd_nb.panoptic.coco import class_table, encode_ids, find_panoptic, missing_classes, panoptic_doctor, read_panoptic, read_panoptic_split
from vfmkd_nb.panoptic.data import PanopticConfig, PanopticSamples
from vfmkd_nb.panoptic.metrics import panoptic_quality
from vfmkd_nb.panoptic.train import PanopticTask, measure, train_panoptic

SAMPLE, SMALL = shared_data() / "panopticapi_sample", shared_data() / "coco_small"
pytestmark = pytest.mark.skipif(not SMALL.is_dir(), reason=f"no {SMALL} (set VFMKD_SHARED)")


def sample_parts():
    return SAMPLE / "annotations" / "panoptic_examples.json", SAMPLE / "images", SAMPLE / "panoptic"


def test_sample_is_read_whole_and_is_its_own_best_prediction():
    data = read_panoptic(*sample_parts(), strict=True)
    assert (len(data), sum(len(r.segments_info) for r in data.images)) == (2, 50)
    for record in data.images:  # the areas in the file are those of the PNG
        values, counts = np.unique(record.ids(), return_counts=True)
        assert {s["id"]: s["area"] for s in record.segments_info} == {int(v): int(n) for v, n in zip(values, counts) if v}
    gt = [(r.ids(), r.segments_info) for r in data.images]
    own = [(np.where(np.isin(ids, [s["id"] for s in info if s["iscrowd"]]), 0, ids), [s for s in info if not s["iscrowd"]]) for ids, info in gt]
    assert panoptic_quality(own, gt, data.categories)["All"]["pq"] == 1


def test_two_channel_png_is_refused_by_name():
    found = panoptic_doctor(SAMPLE / "annotations" / "panoptic_examples.json", SAMPLE / "images", SAMPLE / "panoptic_2ch")
    assert len(found) and set(found["reason"]) <= {"id in the PNG is not in segments_info", "panoptic PNG is not RGB", "file cannot be used"}


@pytest.mark.parametrize(("split", "images", "segments"), [("train", 60, 759), ("val", 58, 595)])
def test_coco_small_is_read_whole(split, images, segments):
    data = read_panoptic_split(SMALL, split)
    assert (len(data), sum(len(r.segments_info) for r in data.images), data.problems.counts) == (images, segments, {})
    assert len(data.categories) == 133 and class_table(data).loc["(void)", "share"] < 0.3


def test_missing_classes_are_named():
    assert missing_classes(read_panoptic_split(SMALL, "train", verify=False), read_panoptic_split(SMALL, "val", verify=False))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_a_rewritten_png_costs_its_image(tmp_path, mode):
    annotations, images, pngs = sample_parts()
    shutil.copytree(pngs, tmp_path / "panoptic")
    for f in (tmp_path / "panoptic").iterdir():
        f.chmod(0o644)
    first = json.loads(annotations.read_text())["annotations"][0]["file_name"]
    with Image.open(tmp_path / "panoptic" / first) as picture:
        rewritten = picture.convert(mode)
    rewritten.save(tmp_path / "panoptic" / first)
    found = read_panoptic(annotations, images, tmp_path / "panoptic")
    assert (len(found), found.problems.counts) == (1, {"panoptic PNG is not RGB": 1})


def test_a_void_only_image_and_a_size_mismatch_are_counted(tmp_path):
    annotations, images, pngs = sample_parts()
    found = json.loads(annotations.read_text())
    found["annotations"][0]["segments_info"] = []
    h, w = found["images"][0]["height"], found["images"][0]["width"]
    (tmp_path / "p").mkdir()
    Image.fromarray(encode_ids(np.zeros((h, w), int))).save(tmp_path / "p" / found["annotations"][0]["file_name"])
    Image.fromarray(encode_ids(np.ones((3, 3), int))).save(tmp_path / "p" / found["annotations"][1]["file_name"])
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert set(panoptic_doctor(tmp_path / "a.json", images, tmp_path / "p")["reason"]) == {"image is void only", "panoptic PNG has another size", "file cannot be used"}


def quality_on(net, samples, config) -> float:
    """PQ of a network on samples, as in the report."""
    return measure(net, make_loader(samples, batch_size=4), samples.data.categories, config, config.input_scale)[0]["All"]["pq"]


@pytest.mark.slow
def test_a_run_on_coco_small_learns(tmp_path):
    """Training loss falls, PQ on the training images rises, predictions of the command can be read back. So few images allow no claim about quality."""
    config = PanopticConfig(data=str(SMALL), train_images=8, val_images=4, epochs=40, batch_size=4, lr=4e-3, scheduler="onecycle", flip=False, image_size=128, score_threshold=0.1, accelerator="cpu", evaluate_every=40, audit_every=0)
    result = train_panoptic(config, run_dir=tmp_path / "run")
    total = result.fit.epochs["train_total"]
    assert total.iloc[-1] < 0.6 * total.iloc[0]
    seen = PanopticSamples(result.train.data, config)
    before, after = (quality_on(net, seen, config) for net in (PanopticTask(config, result.task.categories).model.net, result.task.model.net))
    print(f"PQ on {len(seen)} training images: {before:.3f} before, {after:.3f} after")
    assert before < 0.01 and after > before + 0.05
    (tmp_path / "in").mkdir()
    for record in read_panoptic_split(SMALL, "val").images[:3]:
        shutil.copy(record.path, tmp_path / "in")
    out = tmp_path / "out"
    assert main(["predict", "panoptic", "--network", str(result.network), "--images", str(tmp_path / "in"), "--out", str(out), "--score-threshold", "0.05"]) == 0
    written = json.loads((out / "panoptic.json").read_text())
    assert len(written["annotations"]) == 3 and all((out / "panoptic" / a["file_name"]).is_file() for a in written["annotations"])
    assert find_panoptic(SMALL, "val")[0].is_file()
