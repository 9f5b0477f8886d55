"""What distillation may touch: it teaches the fusion and the encoder, adds up once, and leaves no trace in the network that is kept, neither in its keys nor in its cost."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.panoptic_scenes import PANOPTIC_CATEGORIES
from vfmkd_nb.panoptic.data import PanopticConfig, make_samples
from vfmkd_nb.panoptic.distill import load_network, save_network
from vfmkd_nb.panoptic.predict import command
from vfmkd_nb.panoptic.train import PanopticTask

CONFIG = PanopticConfig(image_size=64, train_images=2, val_images=1, batch_size=2, input_scale=0.5, use_resolution_distill=True, use_sam_distill=True, layers=["P4_S16"], accelerator="cpu")


@pytest.fixture(scope="module")
def trained():
    """A task with every switch on after one backward pass, its losses, and what the low pass of a second task did to the statistics."""
    samples, _, teacher = make_samples(CONFIG)
    task = PanopticTask(CONFIG, samples.data.categories, teacher)
    batch = samples.collate([samples.get(i, None) for i in range(2)])
    losses = task.losses(batch, 1)
    losses["total"].backward()
    return task, losses, batch


def test_fusion_super_resolution_and_adapters_learn(trained):
    task, _, _ = trained
    model = task.model
    assert (model.net.fusion.logits.grad != 0).all()
    for part in (model.resolution.rebuild, model.resolution.project_sr, model.features, model.net.backbone):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()), part


@pytest.mark.parametrize("term", ["loss_sr", "loss_fa", "loss_feat_distill"])
def test_each_distillation_teaches_the_encoder(trained, term):
    task, _, batch = trained
    grads = torch.autograd.grad(task.losses(batch, 1)[term], list(task.model.net.backbone.parameters()), allow_unused=True)
    assert sum(float(g.square().sum()) for g in grads if g is not None) > 0


def test_total_is_the_sum_of_the_weighted_parts_once(trained):
    task, losses, _ = trained
    parts = [k for k in losses if k in task.weights]
    assert {"loss_cls", "loss_mask", "loss_dice", "loss_iou", "loss_sr", "loss_fa", "loss_feat_distill"} == set(parts)
    assert losses["total"].item() == pytest.approx(sum(losses[k].item() for k in parts), rel=1e-5)


def test_what_is_kept_is_the_bare_network_at_its_price(trained, tmp_path):
    """The same keys and the same floating-point operations as a network that was never distilled."""
    task, _, _ = trained
    kept, _ = load_network(save_network(tmp_path / "net.safetensors", task.model.net, CONFIG, PANOPTIC_CATEGORIES))
    bare = PanopticTask(CONFIG.with_(use_resolution_distill=False, use_sam_distill=False), PANOPTIC_CATEGORIES).model.net.eval()
    assert {k: v.shape for k, v in kept.state_dict().items()} == {k: v.shape for k, v in bare.state_dict().items()}
    cost = []
    for net in (kept, bare):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.rand(1, 3, 64, 64), 0.5)
        cost.append(counter.get_total_flops())
    assert cost[0] == cost[1] > 0


@pytest.mark.parametrize(("low_bn", "moved"), [("update", True), ("keep", False)])
def test_the_low_pass_moves_statistics_only_if_asked(trained, low_bn, moved):
    """With `keep`, the statistics after a step on both paths are those of the full pass alone."""
    _, _, batch = trained
    config = CONFIG.with_(resolution_path="both", low_bn=low_bn, use_sam_distill=False)
    samples = make_samples(config)[0]
    batch = samples.collate([samples.get(i, None) for i in range(2)])
    both, full = (PanopticTask(config, PANOPTIC_CATEGORIES) for _ in range(2))
    both.losses(batch, 1)
    with torch.no_grad():
        full.model.net(batch["image"])
    mean = [t.model.net.backbone.net.stem.bn.running_mean for t in (both, full)]
    assert torch.allclose(*mean, atol=1e-6) != moved


def test_a_file_of_an_earlier_head_is_refused(trained, tmp_path):
    """In one sentence that names the file and what it lacks, from the command too."""
    task, _, _ = trained
    save_network(tmp_path / "net.safetensors", task.model.net, CONFIG, PANOPTIC_CATEGORIES)
    meta = {"classes": 5, "backbone": "tiny", "width": 48, "dim": 48, "fusion": "softmax", "categories": PANOPTIC_CATEGORIES, "input_scale": 1.0, "image_size": 64}
    save_file({k: v for k, v in load_file(tmp_path / "net.safetensors").items() if not k.startswith(("head.form", "head.context"))}, tmp_path / "old.safetensors", {"panoptic": json.dumps(meta)})
    with pytest.raises(BadInput, match=r"old\.safetensors was written before networks had coordinates and context"):
        load_network(tmp_path / "old.safetensors")
    with pytest.raises(BadInput, match="coordinates and context"):
        command(["--network", str(tmp_path / "old.safetensors"), "--images", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(BadInput, match="coordinates and context"):
        PanopticTask(CONFIG.with_(init_from=str(tmp_path / "old.safetensors"), use_sam_distill=False), PANOPTIC_CATEGORIES)
