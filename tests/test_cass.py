"""The CASS chapter outside its notebooks: every reference number, resumed runs, real data, and what a user can get wrong.

`tests/fixtures/cass/README.md` says where the numbers come from.
"""
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vfmkd_nb.cass.bias import bias_rows, read_tokens, standardise
from vfmkd_nb.cass.detector import build_detector, detector_config, load_detector, prune_aifi, pruned_layers, save_detector
from vfmkd_nb.cass.diagnose import cover, empty_targets
from vfmkd_nb.cass.losses import KINDS, cass_loss, patch_losses
from vfmkd_nb.cass.pruner import PatchPruner, patch_of_token
from vfmkd_nb.cass.targets import soft_target_mask
from vfmkd_nb.cass.train import CassConfig, CassTask, read_data, train_cass
from vfmkd_nb.core.checkpoint import checkpoints
from vfmkd_nb.core.cli import main
from vfmkd_nb.core.coco import read_split
from vfmkd_nb.core.config import BadInput, parse_flags
from vfmkd_nb.core.reports import parameter_model, report_parameters
from vfmkd_nb.core.scenes import write_scenes
from vfmkd_nb.core.teachers import load_teacher

FIXTURE = dict(np.load(Path(__file__).parent / "fixtures" / "cass" / "fixtures.npz"))
DIVIDING = ("p1_exp03", "p1_linear", "p4_exp03")
LOSSES = {"mse_mean": ("mse", {}), "focal_a2b4_mean": ("dset_focal", {}), "vfl_a075g2_mean": ("vfl", {}), "fixB_mse": ("object", {"base": "mse"}),
          "fixB_focal": ("object", {}), "fixC_mse": ("area", {"base": "mse"}), "fixC_focal": ("area", {})}
SMALL = dict(image_size=64, epochs=2, warmup_epochs=1, batch_size=2, train_images=0, val_images=0, queries=12, denoising=8, aifi_level=0)


def case(name):
    b, (fh, fw, ih, iw, patch, expansion, min_size, linear, _) = torch.tensor(FIXTURE[f"{name}/boxes"]), FIXTURE[f"{name}/params"]
    options = dict(feat_hw=(int(fh), int(fw)), img_hw=(ih, iw), patch=int(patch), expansion=float(expansion), min_size=float(min_size), decay="linear" if linear else "gaussian")
    return [b[b[:, 0] == i, 1:] for i in range(3)], options


@pytest.mark.filterwarnings("ignore:min_size")
@pytest.mark.parametrize("name", DIVIDING)
def test_masks(name):
    boxes, options = case(name)
    assert np.abs(soft_target_mask(boxes, **options).numpy() - FIXTURE[f"{name}/mask"]).max() < 1e-6
    assert np.abs(torch.cat(soft_target_mask(boxes, **options, per_object=True)).numpy() - FIXTURE[f"{name}/mask_per_object"]).max() < 1e-6
    assert np.abs(soft_target_mask(boxes, **options | {"decay": "anisotropic"}).numpy() - FIXTURE[f"{name}/mask_aniso"]).max() < 1e-6


@pytest.mark.filterwarnings("ignore:min_size")
@pytest.mark.parametrize("key", LOSSES)
@pytest.mark.parametrize("name", DIVIDING)
def test_losses_and_gradients(name, key):
    boxes, options = case(name)
    kind, extra = LOSSES[key]
    scores = torch.tensor(FIXTURE[f"{name}/scores"], requires_grad=True)
    loss = cass_loss(scores, boxes, kind=kind, **options, **extra)
    slope, = torch.autograd.grad(loss, scores)
    value, want = float(FIXTURE[f"{name}/loss_{key}"]), FIXTURE[f"{name}/grad_{key}"]
    assert abs(loss.item() - value) <= 1e-5 * value
    assert np.abs(slope.numpy() - want).max() <= 1e-5 * np.abs(want).max()


def test_objects_at_once_equal_a_loop():
    g = torch.Generator().manual_seed(0)
    boxes = [torch.cat([c, c + 10 + 60 * torch.rand(n, 2, generator=g)], 1) for n in (50, 0, 3) for c in [300 * torch.rand(n, 2, generator=g)]]
    scores, grid = torch.randn(3, 1600, generator=g), dict(feat_hw=(40, 40), img_hw=(320, 320))
    for base in ("dset_focal", "mse", "bce"):
        terms = [patch_losses(scores[i], soft_target_mask([b[None]], **grid)[0], base).mean() for i, of in enumerate(boxes) for b in of]
        assert abs(cass_loss(scores, boxes, kind="object", base=base, **grid) - torch.stack(terms).mean()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_double_gradient_check(kind):
    """Analytic against numeric gradients in float64."""
    boxes, scores = [torch.tensor([[4., 4, 13, 20]], dtype=torch.float64), torch.zeros(0, 4, dtype=torch.float64)], torch.randn(2, 16, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda s: cass_loss(s, boxes, (4, 4), (32, 32), kind), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_that_hold_nothing(kind):
    """Boxes outside the picture are as if they were not there (but for the kinds that divide by their number); a box of zero area teaches the patch it lies in; several images, one of them empty."""
    inside, outside, point = torch.tensor([[8., 8, 16, 16]]), torch.tensor([[-40., -40, -8, -8], [40., 40, 60, 50]]), torch.tensor([[20., 20, 20, 20]])
    scores = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    of = lambda *boxes: torch.autograd.grad(cass_loss(scores, list(boxes), (4, 4), (32, 32), kind), scores)[0]
    with_them, without = of(torch.cat([inside, outside]), torch.zeros(0, 4)), of(inside, torch.zeros(0, 4))
    if kind in ("object", "area"):
        assert torch.isfinite(with_them).all() and (with_them[1] == 0).all()
    else:
        assert torch.allclose(with_them, without)
    slope = of(point, torch.zeros(0, 4))
    assert torch.isfinite(slope).all() and (kind == "area" or slope[0, 10] < 0)       # C weighs by area: a point weighs nothing


def test_small_min_size_warns():
    with pytest.warns(UserWarning, match="min_size 1 is below the patch of 4 cells"):
        soft_target_mask([torch.zeros(0, 4)], (8, 8), (64, 64), patch=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        soft_target_mask([torch.zeros(0, 4)], (8, 8), (64, 64), patch=4, min_size=4.)


@pytest.mark.parametrize("hw, patch", [((1, 1), 1), ((3, 5), 8), ((9, 13), 4), ((23, 42), 4)])
def test_pruner_returns_every_token_to_its_place(hw, patch):
    pruner, x = PatchPruner(4, patch, keep_ratio=.4), torch.randn(3, hw[0] * hw[1], 4)
    d = pruner(x, hw)
    assert torch.equal(d.scatter(d.gather(x), x), x)
    owner = patch_of_token(hw, patch)
    for b in range(3):
        assert set(owner[d.index[b][d.real[b]]].tolist()) == set(d.kept[b].nonzero()[:, 0].tolist())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six training and two validation scenes of 64 pixels."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", {"train": 6, "val": 2}, size=64)


def test_a_resumed_run_ends_bit_identical(scenes, tmp_path):
    """From an earlier checkpoint, inside the epoch in which pruning begins."""
    config = CassConfig.parse({**SMALL, "images_dir": str(scenes), "checkpoint_every": 1, "keep_last": 20, "keep_ratio": .5})
    whole = train_cass(config, run_dir=tmp_path / "run")
    weights = {k: v.clone() for k, v in whole.task.model.state_dict().items()}
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        if int("".join(filter(str.isdigit, path.name))) > 4:
            path.unlink()
    again = train_cass(config, run_dir=tmp_path / "run")
    assert again.fit.state["resumed"] == 4
    assert all(torch.equal(v, weights[k]) for k, v in again.task.model.state_dict().items())
    assert again.metrics == whole.metrics and again.task.steps == whole.task.steps


def test_a_saved_detector_prunes_as_before_and_can_be_trained_on(scenes, tmp_path):
    config = CassConfig.parse({**SMALL, "images_dir": str(scenes), "mask_every": 2, "evaluate_every": 2})
    first = train_cass(config, run_dir=tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tb"), size_guidance={"images": 0})
    board.Reload()
    masks = board.Images("picture/cass_masks")                                      # 6 steps, every second one sampled, one picture at the only evaluation
    assert len(masks) == 1 and masks[0].step == 6 and masks[0].height == 3 * 176 + 2 * 4
    folder = save_detector(first.task.model, tmp_path / "detector")
    again = load_detector(folder)
    assert pruned_layers(again)[0].pruner.keep == .5
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x).logits, first.task.model.eval()(x).logits)
    assert train_cass(config.with_(detector=str(folder)), run_dir=tmp_path / "second").fit.state["step"] == 6


def test_every_attention_level_is_taught_and_a_folder_keeps_its_scorers(tmp_path):
    """A detector that attends on two levels has two pruners, each with its own grid; loaded with other options it prunes as these say, with the scorers it had."""
    folder = save_detector(prune_aifi(build_detector(detector_config(6, queries=12, aifi_levels=(1, 2))), keep_ratio=.7), tmp_path / "detector")
    config = CassConfig.parse({**SMALL, "detector": str(folder), "keep_ratio": .5, "warmup_epochs": 0, "mask_every": 1})
    task = CassTask(config, 6)
    assert task.strides == [16, 32] and [layer.pruner.keep for layer in task.layers] == [.5, .5]
    assert all(torch.equal(a.pruner.fc1.weight, b.pruner.fc1.weight) for a, b in zip(task.layers, pruned_layers(load_detector(folder))))
    batch = {"image": torch.rand(2, 3, 96, 64), "boxes": [torch.tensor([[8., 8, 40, 60]]), torch.zeros(0, 4)], "classes": [torch.tensor([2]), torch.zeros(0, dtype=torch.long)], "valid_hw": torch.tensor([[96, 64], [96, 40]])}
    losses = task.losses(batch, 1)
    losses["cass"].backward()
    assert [layer.decision.kept.shape for layer in task.layers] == [(2, 24), (2, 6)]
    assert all(p.grad.abs().sum() > 0 for layer in task.layers for p in layer.pruner.parameters())
    assert not CassTask(config.with_(use_cass=False), 6).layers


@pytest.mark.parametrize("family", ["rt_detr_v2", "d_fine"])
def test_the_other_families_train(family, scenes, tmp_path):
    result = train_cass(CassConfig.parse({**SMALL, "images_dir": str(scenes), "detector": family}), run_dir=tmp_path)
    assert np.isfinite(result.fit.steps["total"]).all() and result.task.layers[0].pruner.keep == .5
    again, x = load_detector(save_detector(result.task.model, tmp_path / "detector")), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x).logits, result.task.model.eval()(x).logits)
    assert pruned_layers(again)[0].decision.kept.sum() == 32


@pytest.mark.parametrize("options, said", [
    ({"cass_kind": "onb"}, "expected one of document, obn"),
    ({"keep_ratio": 0}, "keep_ratio"),
    ({"image_size": 100}, "not a multiple of 32"),
    ({"cass_lossweight": .05}, "did you mean 'cass_loss_weight'?"),
    ({"warmup_epochs": 9, "epochs": 10}, "after the last (10)"),
    ({"detector": "yolo"}, "expected one of rt_detr"),
    ({"images_dir": "/nowhere"}, "does not exist"),
])
def test_what_a_user_can_get_wrong(options, said, tmp_path):
    with pytest.raises(BadInput) as error:
        train_cass(CassConfig.parse({**SMALL, **options}), run_dir=tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_report_lists_every_option():
    parameters = report_parameters("cass_detector")
    assert set(parameters) == set(CassConfig.model_fields)


DOCUMENT = ["--use-cass", "--cass-kind", "document", "--cass-loss-weight", "0.01", "--cass-expansion-ratio", "0.8", "--cass-min-size", "3.0", "--no-use-subpixel-offset", "--use-focal-loss",
            "--cass-focal-alpha", "1.5", "--cass-focal-beta", "3", "--keep-ratio", "0.3", "--warmup-epochs", "1", "--no-cass-in-warmup"]


@pytest.mark.parametrize("flags, kind, extra", [
    ([], "dset_focal", {"alpha": 1.5, "beta": 3.0}),
    (["--no-use-focal-loss"], "mse", {}),
    (["--cass-kind", "object"], "object", {"base": "dset_focal", "alpha": 1.5, "beta": 3.0}),
    (["--cass-kind", "area", "--no-use-focal-loss"], "area", {"base": "mse"}),
    (["--cass-kind", "obn"], "obn", {}),
])
def test_the_documents_options_as_flags(flags, kind, extra, scenes):
    """`vfmkd report cass_detector --use-cass …`: every name of the document arrives in the loss that is back-propagated, and `--no-use-cass` is a dense detector."""
    small = [f"--{k.replace('_', '-')}={v}" for k, v in (SMALL | {"images_dir": str(scenes)}).items() if k != "warmup_epochs"]
    config = CassConfig.parse(parse_flags(parameter_model("cass_detector"), [*small, *DOCUMENT, *flags]))
    train, _ = read_data(config)
    task = CassTask(config, len(train.data.categories))
    assert task.epoch_start(1) is None and task.layers[0].pruner.keep == 1
    batch = train.collate([train.get(i, None) for i in range(2)])
    assert "cass" not in task.losses(batch, 1)                                     # the document: off during the warm-up
    task.epoch_start(2)
    losses, d = task.losses(batch, 2), task.layers[0].decision
    want = cass_loss(d.scores, batch["boxes"], (8, 8), (64, 64), kind, expansion=.8, min_size=3., subpixel=False, **extra)
    assert torch.allclose(losses["cass"], .01 * want) and torch.allclose(losses["total"], losses["detection"] + .01 * want)
    assert abs(task.layers[0].pruner.keep - .3) < 1e-6 and d.kept.sum(1).tolist() == [19, 19]
    dense = CassConfig.parse(parse_flags(parameter_model("cass_detector"), [*small, *DOCUMENT, *flags, "--no-use-cass"]))
    assert not CassTask(dense, 6).layers


def test_coco_small(real_data, tmp_path):
    """Padded photographs with 80 classes: two steps of a pruned detector."""
    config = CassConfig.parse({**SMALL, "images_dir": str(real_data / "coco_small"), "train_images": 4, "val_images": 2, "resize": "long_side_pad", "patch_size": 3, "cass_min_size": 3})
    train, val = read_data(config)
    assert len(train) == 4 and any((s["valid_hw"] < 64).any() for s in (train.get(i, None) for i in range(4)))
    result = train_cass(config, run_dir=tmp_path)
    assert np.isfinite(result.fit.steps["total"]).all()
    kept, valid = result.task.layers[0].decision.kept, cover([torch.zeros(0, 4)] * 2, (8, 8), (64, 64), 3, valid_hw=torch.stack([val.get(i, None)["valid_hw"] for i in range(2)]), min_size=3.).valid
    assert not (kept & ~valid).any()


def test_nuclei(real_data):
    """Up to hundreds of small objects: every kind on real tokens; objects that a coarse grid would lose are counted."""
    teacher, splits = load_teacher("embedded", layers=["P3_S8"]), [read_split(real_data / "dsb2018_nuclei", s) for s in ("train", "val")]
    train, val = standardise(*(read_tokens(s, teacher, size=128, images=4) for s in splits))
    rows = bias_rows(train, {"val": val}, seeds=(0,), steps=2)
    assert np.isfinite(rows["small"]).all() and len(rows) == 10
    with pytest.warns(UserWarning, match="below the patch"):
        assert empty_targets(val.boxes, (16, 16), (128, 128), patch=4, min_size=1.)["rate"] > 0
    assert empty_targets(val.boxes, (16, 16), (128, 128), patch=4, min_size=4.)["rate"] == 0


def test_the_doctor_counts_empty_targets(tmp_path, capsys):
    """`vfmkd doctor --grid`: as many as the targets themselves have; none where `min_size` is the patch."""
    root = write_scenes(tmp_path / "scenes", {"train": 1, "val": 2}, size=96)
    assert main(["doctor", str(root), "--split", "val", "--grid", "192:8"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = next(r for r in rows if "min_size" in r)
    table = {(int(r[0]), int(r[1])): dict(zip(names, r)) for r in rows[rows.index(names) + 1:]}
    boxes = [torch.tensor([o.bbox_xyxy for o in r.objects]) * 2 for r in read_split(root, "val").images]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        lost = sum(int((m.amax(1) == 0).sum()) for m in soft_target_mask(boxes, (24, 24), (192, 192), 8, .3, 1., per_object=True))
    assert lost > 0 and int(table[8, 1]["empty"]) == lost and all(int(table[p, p]["empty"]) == 0 for p in (1, 2, 4, 8))
    assert main(["doctor", str(root), "--split", "val", "--grid", "640"]) == 2
