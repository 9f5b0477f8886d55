"""The edge chapter at its borders: what a user can get wrong ends in one sentence; sets of one image, broken pictures and real sets are used."""
import shutil
from pathlib import Path

import pytest
import torch

from vfmkd_nb.core.cli import main
from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.core.reports import report_parameters
from vfmkd_nb.core.scenes import write_scenes
from vfmkd_nb.core.train import make_optimizer
from vfmkd_nb.edge.data import EdgeConfig, make_samples
from vfmkd_nb.edge.train import EdgeTask, train_edge

SMALL = dict(image_size=64, teacher="random:0", epochs=1, batch_size=2, train_images=0, val_images=0, benchmark_thresholds=5)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four training and two validation scenes of 64 pixels."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", {"train": 4, "val": 2}, size=64)


@pytest.fixture
def train(scenes, tmp_path):
    """`train_edge` with small options, a store and a folder of its own."""
    def run(run_dir=None, **options):
        config = EdgeConfig.parse({**SMALL, "images_dir": str(scenes), **options})
        return train_edge(config, run_dir=run_dir or tmp_path / "run", store=FeatureStore(tmp_path / "store"))
    return run


def sentence(error) -> str:
    """The message, which must be one sentence."""
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "?")), text
    return text


def test_missing_folder(train):
    with pytest.raises(BadInput) as e:
        train(images_dir="/nowhere/at/all")
    assert "images_dir /nowhere/at/all does not exist; expected 'embedded' or a folder with splits train and val" in sentence(e)


def test_folder_without_splits(train, tmp_path):
    with pytest.raises(BadInput) as e:
        train(images_dir=str(tmp_path))
    assert "has no split 'train'" in sentence(e)


def test_empty_data_set(train, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "empty")
    (tmp_path / "empty" / "train" / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(BadInput) as e:
        train(images_dir=str(tmp_path / "empty"))
    assert "annotations.json lists no images" in sentence(e)


def test_data_set_without_a_usable_picture(train, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "broken")
    for picture in (tmp_path / "broken" / "train" / "images").iterdir():
        picture.write_bytes(picture.read_bytes()[:1500])
    with pytest.raises(BadInput) as e:
        train(images_dir=str(tmp_path / "broken"))
    assert "holds no usable image: image cannot be read (4)" in sentence(e)


def test_one_broken_picture_is_counted(train, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "cut")
    picture = next((tmp_path / "cut" / "train" / "images").iterdir())
    picture.write_bytes(picture.read_bytes()[:1500])
    result = train(images_dir=str(tmp_path / "cut"))
    assert len(result.train) == 3 and result.train.data.problems.counts == {"image cannot be read": 1}


def test_one_image_data_set(train, tmp_path):
    one = write_scenes(tmp_path / "one", {"train": 1, "val": 1}, size=64)
    result = train(images_dir=str(one), batch_size=1, epochs=2)
    assert len(result.fit.steps) == 2 and len(result.per_image) == 1


def test_batch_larger_than_the_data(train):
    with pytest.raises(BadInput) as e:
        train(batch_size=8)
    assert "batch_size 8 is larger than the training set (4 images)" in sentence(e)


def test_image_in_both_splits(train, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "leak")
    first, other = (sorted((tmp_path / "leak" / s / "images").iterdir())[0] for s in ("train", "val"))
    shutil.copy(first, other)
    with pytest.raises(BadInput) as e:
        train(images_dir=str(tmp_path / "leak"))
    assert "1 of 2 validation images are also training images" in sentence(e)


@pytest.mark.parametrize("options, said", [
    ({"edge_mask_kernel_size": 4}, "option 'edge_mask_kernel_size': 4 is even; expected 1, 3, 5"),
    ({"edge_mask_start_epoch": 0}, "option 'edge_mask_start_epoch' is 0, expected greater than or equal to 1"),
    ({"mask": "bande"}, "'bande' is unknown; expected one of none, band"),
    ({"image_size": 100}, "100 is not a multiple of 32"),
    ({"loss_type": "fdg"}, "option 'loss_type' is 'fdg', expected 'fgd', 'fsdlike', 'mse' or 'cosine'"),
    ({"epochs": "many"}, "option 'epochs' is 'many', expected a valid integer"),
    ({"epocs": 3}, "unknown option 'epocs'; did you mean 'epochs'?"),
    ({"edges": "files"}, "features_dir is empty"),
    ({"backbone": "repvit_m_1"}, "unknown backbone 'repvit_m_1'; did you mean 'repvit_m1"),
    ({"teacher": "embeded"}, "teacher 'embeded' is not known; did you mean 'embedded'?"),
    ({"teacher": "/no/such/folder"}, "teacher folder /no/such/folder does not exist"),
    ({"layers": ["P9_S512"]}, "the teacher has no map 'P9_S512'"),
    ({"features_dir": "/no/features"}, "/no/features holds no <id>_features.npz"),
    ({"edges": "boundaries"}, "boundary map is missing (4)"),
    ({"edges": "teacher"}, "has no edge head"),
    ({"best_metric": "boundry_f"}, "did you mean 'boundary_f'?"),
])
def test_options_that_cannot_be_used(train, options, said):
    with pytest.raises(BadInput) as e:
        train(**options)
    assert said in sentence(e)


def test_unwritable_output(train, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadInput) as e:
        train(run_dir=tmp_path / "file" / "run")
    assert str(tmp_path / "file") in sentence(e)


@pytest.mark.parametrize("argv, said", [
    (["--epochs", "many"], "option 'epochs' is 'many', expected a valid integer"),
    (["--lr", "fast"], "option 'lr' is 'fast', expected a valid number"),
    (["--pos-weight=7"], "option 'pos_weight' is '7', expected a valid boolean"),
    (["--edge-mask-kernal-size", "3"], "unknown option --edge-mask-kernal-size; did you mean --edge-mask-kernel-size?"),
    (["--loss-type", "fdg"], "option 'loss_type' is 'fdg'"),
    (["--out", "{file}/run"], "cannot be written"),
])
def test_the_command_refuses_before_anything_starts(argv, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VFMKD_REPORTS", str(tmp_path / "reports"))
    assert main(["report", "edge", *(a.format(file=tmp_path / "file") for a in argv)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vfmkd: ") and said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("reports/edge/*"))


def test_the_report_has_the_options_of_the_chapter():
    """The parameters cell and `EdgeConfig` agree in names and defaults."""
    cell, fields = report_parameters("edge"), EdgeConfig.model_fields
    assert set(cell) == set(fields)
    assert {k: p.default for k, p in cell.items()} == {k: f.default for k, f in fields.items()}


@pytest.mark.parametrize("loss_type", ["mse", "cosine", "fgd", "fsdlike"])
def test_all_parameters_are_in_the_optimiser(scenes, tmp_path, loss_type):
    config = EdgeConfig(**{**SMALL, "images_dir": str(scenes), "loss_type": loss_type, "layers": ["P4_S16", "P5_S32"]})
    train, _, teacher = make_samples(config, FeatureStore(tmp_path / "store"))
    task = EdgeTask(config, teacher)
    optimised = {id(p) for g in make_optimizer(task.model, config).param_groups for p in g["params"]}
    assert optimised == {id(p) for p in task.model.parameters()}
    assert {"student.adapters.P4_S16.proj.weight", "student.adapters.P5_S32.proj.weight", "student.head.last.weight"} <= dict(task.model.named_parameters()).keys()
    batch = {**train.collate([train.get(i, None) for i in range(2)]), "ids": ["a", "b"]}
    task.losses(batch, 1)["total"].backward()
    assert [n for n, p in task.model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


@pytest.mark.parametrize("name, edges", [("bsds500", "boundaries"), ("coco_small", "instances")])
def test_real_photographs(real_data, tmp_path, name, edges):
    config = EdgeConfig(images_dir=str(real_data / name), edges=edges, image_size=128, epochs=1, train_images=4, val_images=2, benchmark_thresholds=5)
    result = train_edge(config, run_dir=tmp_path / "run", store=FeatureStore(tmp_path / "store"))
    assert len(result.per_image) == 2 and 0 <= result.metrics["ods"] <= 1
    assert result.val.truth(result.val.data.images[0]).shape[0] >= (3 if edges == "boundaries" else 1)  # several annotators
