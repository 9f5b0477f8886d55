"""Fix B at once against a loop over objects (at least 4 times as fast, same value), and the AIFI layer pruned to 0.3 against dense on 40×40 tokens (at least twice as fast).

Both pairs run in turn on one thread and are timed by the processor time they use, so that a busy machine does not distort the ratios. The whole model's times are printed beside the layer's.
"""
import statistics
import sys
import time

import torch

from vfmkd_nb.cass.detector import build_detector, detector_config, prune_aifi, pruning_cost
from vfmkd_nb.cass.losses import cass_loss, patch_losses
from vfmkd_nb.cass.targets import soft_target_mask

ROUNDS, GRID = 9, dict(feat_hw=(40, 40), img_hw=(320, 320))


def loop(scores, boxes):
    """Fix B as the document's appendix reads: each object against its own mask."""
    terms = [patch_losses(s, soft_target_mask([b[None]], **GRID)[0], "dset_focal").mean() for s, of_image in zip(scores, boxes) for b in of_image]
    return torch.stack(terms).mean()


def at_once(scores, boxes):
    return cass_loss(scores, boxes, **GRID, kind="object")


def loss_ratio() -> tuple[float, float]:
    """Median time of the loop divided by the vectorised loss's, forward and backward, and the difference of their values."""
    g = torch.Generator().manual_seed(0)
    corners = 300 * torch.rand(4, 50, 2, generator=g)
    boxes, x = [torch.cat([c, c + 10 + 60 * torch.rand(50, 2, generator=g)], 1) for c in corners], torch.randn(4, 1600, generator=g, requires_grad=True)
    took, value = {loop: [], at_once: []}, {}
    for r in range(ROUNDS + 1):
        for f in took:
            began = time.process_time()
            value[f] = f(x, boxes)
            value[f].backward()
            if r:
                took[f].append(time.process_time() - began)
    for f in took:
        print(f"{f.__name__:8} {1e3 * statistics.median(took[f]):8.1f} ms")
    return statistics.median(took[loop]) / statistics.median(took[at_once]), abs(value[loop].item() - value[at_once].item())


def aifi_ratio() -> float:
    """AIFI of RT-DETR's width (256, MLP 1024) on 40×40 tokens: dense (no pruner) ÷ keep 0.3, scoring, sorting, gathering and scattering included."""
    config = detector_config(6, hidden=256, aifi_levels=(0,))
    config.encoder_ffn_dim = 1024
    rows = pruning_cost(prune_aifi(build_detector(config), keep_ratio=.3), (320, 320), keeps=(1.0, 0.5, 0.3), rounds=ROUNDS)
    for row in rows:
        print("  ".join(f"{k} {v if isinstance(v, str) else format(v, '.3g')}" for k, v in row.items()))
    print(f"whole model (320 px, stem of 16 channels, attention on stride 8): {rows[0]['model_ms'] / rows[-1]['model_ms']:.2f} times as fast")
    return rows[0]["aifi_ms"] / rows[-1]["aifi_ms"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    ratio, gap = loss_ratio()
    layer = aifi_ratio()
    print(f"fix B at once: {ratio:.1f} times as fast as the loop (at least 4), values differ by {gap:.1e} (at most 1e-6)")
    print(f"AIFI at keep 0.3: {layer:.2f} times as fast as dense (at least 2)")
    sys.exit(not (ratio >= 4 and gap <= 1e-6 and layer >= 2))
