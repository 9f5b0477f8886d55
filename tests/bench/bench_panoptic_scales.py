"""Inference at half scale must be at least 3 times faster than at full scale: one network, one 1024×1024 picture, the scales in turns, processor time, medians."""
import sys
import time

import torch

from vfmkd_nb.panoptic.model import PanopticNet
from vfmkd_nb.panoptic.resolution import SuperResolution

BOUND, ROUNDS, SIDE = 3.0, 7, 1024


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, image, times = PanopticNet(5).eval(), torch.rand(1, 3, SIDE, SIDE), {1.0: [], 0.5: []}
    with torch.no_grad():
        for k in range(ROUNDS + 1):
            for scale, found in times.items():
                begin = time.process_time()
                net(image, scale)
                if k:
                    found.append(time.process_time() - begin)
    full, half = (float(torch.tensor(times[s]).median()) for s in (1.0, 0.5))
    print(f"{SIDE}×{SIDE}: full scale {1e3 * full:.0f} ms, half scale {1e3 * half:.0f} ms: {full / half:.2f} times faster, bound {BOUND:g}")
    step_costs(net)
    return int(full / half < BOUND)


def step_costs(net):
    """Forward and backward of a training step, half scale without and with the super-resolution branch, and full scale."""
    branch, images = SuperResolution(48, 48, 0.5), torch.rand(8, 3, 128, 128)
    net.train()

    def step(scale, distill):
        begin = time.process_time()
        maps = net(images, scale)
        loss = maps.heat.square().mean() + maps.pixels.square().mean()
        if distill:
            loss = loss + sum(branch.losses(maps, images, 1 / 16).values())
        loss.backward()
        return time.process_time() - begin

    ways = {"half": (0.5, False), "half + SR + FA": (0.5, True), "full": (1.0, False)}
    found = {name: [] for name in ways}
    for k in range(6):
        for name, way in ways.items():
            found[name].append(step(*way))
    middle = {name: float(torch.tensor(t[1:]).median()) for name, t in found.items()}
    print("network part of a training step, batch 8 of 128×128: " + ", ".join(f"{n} {1e3 * t:.0f} ms ({100 * (t / middle['half'] - 1):+.0f} %)" for n, t in middle.items()))


if __name__ == "__main__":
    sys.exit(main())
