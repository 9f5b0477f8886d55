"""The boxes chapter at its borders and on real data: commands, files that other chapters read, a killed run, mistakes that end in one sentence."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vfmkd_nb.boxes.data import BoxConfig, resolve
from vfmkd_nb.boxes.losses import box_refine_loss
from vfmkd_nb.boxes.model import BoxRefiner
from vfmkd_nb.boxes.predict import REFINER_FILE, load_predictor, save_refiner
from vfmkd_nb.boxes.train import BoxTask, over_bounds, paired_iou, train_boxes
from vfmkd_nb.core.cli import main
from vfmkd_nb.core.coco import read_coco
from vfmkd_nb.core.config import BadInput, parse_flags
from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.core.reports import parameter_model, plan_run, report_parameters
from vfmkd_nb.core.teachers import load_teacher

SMALL = dict(image_size=64, train_images=4, val_images=3, epochs=1, batch_size=2, warmup_steps=0, passport_samples=1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder of its own."""
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VFMKD_REPORTS", str(tmp_path / "reports"))
    return tmp_path


def test_options_of_the_report_are_those_of_the_configuration():
    cell, fields = report_parameters("boxes"), BoxConfig.model_fields
    assert set(cell) == set(fields)
    smaller = {"train_images", "val_images", "epochs", "audit_every"}  # the report's own defaults are a short trial
    for name in set(cell) - smaller:
        assert cell[name].default in (fields[name].default, repr(fields[name].default)) or str(cell[name].default).strip("'\"") == str(fields[name].default), name


CONFIG = Path(__file__).parents[1] / "configs" / "box_refinement_config.yaml"


def test_the_configuration_file_is_the_default():
    """The file groups options under headings and uses the document's names; it says what the defaults are."""
    assert BoxConfig.load(CONFIG) == BoxConfig()


def test_a_file_in_the_documents_layout(tmp_path):
    """Headings and the document's names reach the report; `--fast` doubles the rate; a wrong name names its place and the nearest one."""
    (file := tmp_path / "doc.yaml").write_text("loss:\n  l1_weight: 0.5\n  iou_weight: 3.0\ntraining:\n  learning_rate: 1e-3\n  num_epochs: 2\n  mixed_precision: true\n  grad_clip_norm: 2.0\n")
    given = parse_flags(parameter_model("boxes"), ["--config", str(file), "--fast"])
    assert given == {"l1_weight": .5, "iou_weight": 3.0, "lr": 1e-3, "epochs": 2, "precision": "bf16-mixed", "clip_norm": 2.0, "fast": True}
    assert plan_run("boxes", given, tmp_path / "run").config.lr == 1e-3
    resolved = resolve(BoxConfig.parse(given))
    assert (resolved.lr, resolved.train_share, resolved.fast) == (2e-3, .1, False)
    file.write_text("training:\n  lerning_rate: 1e-3\n")
    with pytest.raises(BadInput, match=r"unknown option 'training.lerning_rate'; did you mean 'training.learning_rate'\?"):
        parse_flags(parameter_model("boxes"), ["--config", str(file)])
    with pytest.raises(BadInput, match=r"doc.yaml: unknown option 'training.lerning_rate'"):
        BoxConfig.load(file)



@pytest.mark.parametrize("options, said", [
    ({"batch_size": 8, "train_images": 4}, "batch_size 8 is larger than the training set"),
    ({"layer": "P4"}, "the teacher has no map 'P4'"),
    ({"images_dir": "/nowhere"}, "does not exist"),
    ({"extract": "never"}, "features of view 'identity' are not in the store for 4 of 4 images"),
])
def test_mistakes_end_in_one_sentence(data, options, said):
    with pytest.raises(BadInput, match=said) as e:
        train_boxes(BoxConfig(**{**SMALL, **options}), run_dir=data / "run")
    assert "\n" not in str(e.value)


def test_a_set_whose_pictures_are_partly_bad(data):
    """A picture that cannot be read and an image without a box are counted and left out."""
    train_boxes(BoxConfig(**SMALL), run_dir=data / "first")
    root = next((data / "data" / "scenes").iterdir())
    names = sorted((root / "train" / "images").iterdir())
    names[0].write_bytes(names[0].read_bytes()[:300])
    listed = json.loads((root / "train" / "annotations.json").read_text())
    listed["annotations"] = [a for a in listed["annotations"] if a["image_id"] != 2]
    (root / "train" / "annotations.json").write_text(json.dumps(listed))
    result = train_boxes(BoxConfig(**SMALL, images_dir=str(root)), run_dir=data / "run")
    assert len(result.train) == 2 and result.train.data.problems.counts == {"image has no box": 1, "image cannot be read": 1}


def test_an_edited_image_misses_and_a_moved_folder_hits(data):
    """Content is the key: the cache follows the bytes, not the path."""
    first = train_boxes(BoxConfig(**SMALL), run_dir=data / "first")
    assert first.store.stats.misses == 7
    root = next((data / "data" / "scenes").iterdir())
    moved = data / "elsewhere"
    root.rename(moved)
    second = train_boxes(BoxConfig(**SMALL, images_dir=str(moved)), run_dir=data / "second")
    assert second.store.stats.misses == 0 and second.metrics == first.metrics
    from PIL import Image
    file = sorted((moved / "val" / "images").iterdir())[0]
    Image.open(file).rotate(180).save(file)
    third = train_boxes(BoxConfig(**SMALL, images_dir=str(moved)), run_dir=data / "third")
    assert third.store.stats.misses == 1


def test_a_foreign_cache_is_refused(data):
    """Entries that another computation left under this teacher's name are noticed by the passport before training."""
    first = train_boxes(BoxConfig(**SMALL), run_dir=data / "first")
    store = first.store
    for i, r in enumerate(first.train.data.images):
        store.put(first.train.record(r), {"P2_S4": torch.randn(first.train.features(i).shape)})
    for i, r in enumerate(first.val.data.images):
        store.put(first.val.record(r), {"P2_S4": torch.randn(first.val.features(i).shape)})
    with pytest.raises(BadInput, match="cache passport: map 'P2_S4'"):
        train_boxes(BoxConfig(**SMALL), run_dir=data / "second")


def test_refine_command(data, capsys):
    """From a run's folder and a file of coarse boxes to a file of refined ones."""
    config = BoxConfig(**{**SMALL, "train_images": 24, "epochs": 4, "batch_size": 4})
    result = train_boxes(config, run_dir=data / "run")
    save_refiner(result.task, result.teacher, data / "run" / REFINER_FILE)
    from vfmkd_nb.boxes.predict import coarse_file
    coarse = coarse_file(result.val.data, data / "coarse.json")
    assert main(["predict", "boxes", "--checkpoint", str(data / "run"), "--boxes", str(coarse), "--images", str(result.val.data.root), "--out", str(data / "out.json")]) == 0
    assert capsys.readouterr().out.strip().endswith("out.json")  # the file, and no complaint about the boxes
    read = {name: read_coco(data / f"{name}.json", result.val.data.root) for name in ("coarse", "out")}
    true = torch.tensor([o.bbox_xyxy for o in result.val.data.objects])
    before, after = (float(paired_iou(torch.tensor([o.bbox_xyxy for o in d.objects]), true).mean()) for d in read.values())
    assert after > before
    assert main(["predict", "boxes", "--checkpoint", str(data / "nothing"), "--boxes", str(coarse), "--images", str(result.val.data.root), "--out", str(data / "x.json")]) == 2


def test_a_refiner_knows_its_teacher(data):
    config = BoxConfig(**SMALL, teacher="random:0")
    result = train_boxes(config, run_dir=data / "run")
    file = save_refiner(result.task, result.teacher, data / "refiner.safetensors")
    file.write_bytes(file.read_bytes().replace(b'random:0\\"', b'random:1\\"'))
    with pytest.raises(BadInput, match="its features are not the ones the refiner knows"):
        load_predictor(file)


RUN = """
from vfmkd_nb.boxes.data import BoxConfig
from vfmkd_nb.boxes.train import train_boxes
import sys, json
r = train_boxes(BoxConfig(image_size=64, train_images=16, val_images=3, epochs=3, batch_size=2, warmup_steps=0, checkpoint_every=1, passport_samples=0), run_dir=sys.argv[1])
print(json.dumps(r.metrics))
"""


@pytest.mark.slow
def test_killed_and_resumed(data):
    """kill -9 in the middle of training; the same command ends with the same numbers as an undisturbed run."""
    def begin(folder):
        return subprocess.Popen([sys.executable, "-c", RUN, str(data / folder)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    whole, _ = begin("whole").communicate(timeout=300)
    p = begin("killed")
    end = time.monotonic() + 120
    while len(list((data / "killed").glob("checkpoints/*"))) < 2 and p.poll() is None and time.monotonic() < end:
        time.sleep(.02)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    resumed, _ = begin("killed").communicate(timeout=300)
    assert json.loads(resumed.splitlines()[-1]) == json.loads(whole.splitlines()[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_public_interfaces(dtype):
    """The names that the chapter promises, with any feature dtype."""
    model = BoxRefiner(8, 4)
    boxes = torch.tensor([[4., 4, 30, 20], [10, 10, 50, 50]])
    path = model(torch.randn(1, 8, 16, 16).to(dtype), boxes, torch.zeros(2, dtype=torch.long))
    total, l1, iou = box_refine_loss(path[-1], boxes + 2)
    total.backward()
    assert torch.isfinite(total) and float(l1.detach()) < 5 and float(iou.detach()) < .5
    with pytest.raises(ValueError):
        box_refine_loss(boxes[:1], boxes)


def test_bf16_training(data):
    """Mixed precision trains, and its boxes are near those of full precision."""
    full = train_boxes(BoxConfig(**SMALL), run_dir=data / "full")
    mixed = train_boxes(BoxConfig(**SMALL, precision="bf16-mixed"), run_dir=data / "mixed")
    assert abs(full.metrics["iou"] - mixed.metrics["iou"]) < .02


def test_heads_of_the_sam_family_shapes():
    """A SAM-sized map, 256 channels at 64×64, and 30 boxes."""
    for head in ("roi", "attention", "attention_position"):
        task = BoxTask(BoxConfig(head=head, layer="P4_S16"), load_teacher("random:0", layers=["P4_S16"]))
        features = torch.randn(1, task.model.channels, 64, 64)
        boxes = torch.rand(30, 4) * 400
        boxes[:, 2:] += boxes[:, :2] + 20
        assert task.model(features, boxes, torch.zeros(30, dtype=torch.long)).shape == (4, 30, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name, annotations", [("pcb_photo_defects", "instances"), ("deeppcb", "boxes"), ("coco_small", "instances")])
def test_real_photographs(real_data, data, name, annotations):
    """A short run on real pictures: it reads them, trains inside the bounds, and its cache is warm the second time."""
    config = BoxConfig(images_dir=str(real_data / name), annotations=annotations, image_size=256, train_images=16, val_images=8, epochs=2, batch_size=4, warmup_steps=2, noise_kind="uniform")  # the noise of the promise, .25
    result = train_boxes(config, run_dir=data / "run")
    assert over_bounds(result.fit.steps) == {} and abs(result.metrics["iou_before"] - .62) < .06
    warm = FeatureStore()
    train_boxes(config, run_dir=data / "second", store=warm)
    assert warm.stats.hit_rate == 1
