"""A small training with everything that could make a resume inexact; `python toy.py RUN_DIR [--option value …]` trains it.

Augmentation (from the sample's generator and from torch's global one), dropout, batch norm, accumulation, a last batch that is smaller, a loss weight that the model learns,
a running mean that the task keeps, random numbers in NumPy and `random`.
"""
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vfmkd_nb.core.train import TrainConfig, fit

OPTIONS = {"epochs": 3, "batch_size": 4, "accumulate": 2, "lr": 1e-2, "warmup_steps": 3, "best_metric": "error", "best_mode": "min", "checkpoint_every": 2, "seed": 5}


class Blobs:
    """`n` noisy 12×12 images and the same without noise."""

    def __init__(self, n: int = 30):
        self.n = n

    def __len__(self):
        return self.n

    def sample_id(self, i):
        return f"blob-{i:03d}"

    def get(self, i, rng):
        clean = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(i))
        if rng is None:
            return {"image": clean, "clean": clean}
        clean = clean.roll(torch.randint(-3, 4, (1,), generator=rng).item(), dims=-1)
        return {"image": clean + 0.1 * torch.randn(clean.shape), "clean": clean}


class Denoiser:
    """The task. `watch` is a folder for the ids that each process sees; `at_step` maps a number of calls to something to do then."""

    metrics_are_means = True

    def __init__(self, watch: Path | None = None, at_call=None, batch_norm: bool = True, dropout: float = 0.2):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.model = nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), norm, nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(6, 1, 3, padding=1))})
        self.model.register_parameter("log_weight", nn.Parameter(torch.zeros(())))
        self.watch, self.at_call, self.calls, self.mean, self.jitter = watch, at_call or {}, 0, 0.0, batch_norm

    def losses(self, batch, epoch):
        self.calls += 1
        if self.calls in self.at_call:
            self.at_call[self.calls]()
        if self.watch:
            with open(self.watch / f"ids-{os.environ.get('LOCAL_RANK', '0')}.txt", "a") as f:
                f.write("".join(f"{epoch} {i}\n" for i in batch["ids"]))
        found = self.model["net"](batch["image"])
        error = F.mse_loss(found, batch["clean"])
        if self.jitter:
            self.mean = 0.9 * self.mean + 0.1 * error.item()
            jitter = 1 + 0.01 * (np.random.rand() + random.random() + self.mean)
        else:
            jitter = 1.0
        weighted = error * jitter * torch.exp(-self.model.log_weight)
        return {"total": weighted + self.model.log_weight, "error": weighted, "uncertainty": self.model.log_weight * 1.0}

    def evaluate(self, loader):
        sums = [(F.mse_loss(self.model["net"](b["image"]), b["clean"]).item() * len(b["ids"]), len(b["ids"])) for b in loader]
        return {"error": sum(s for s, _ in sums) / sum(n for _, n in sums)}

    def epoch_start(self, epoch):
        return "half-way" if epoch == 2 else None

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def main(run_dir: str, *flags: str) -> None:
    """Train the toy from the command line."""
    ddp = "--devices" in flags
    config = TrainConfig.from_flags([x for k, v in OPTIONS.items() for x in (f"--{k}", str(v))] + list(flags))
    task = Denoiser(watch=Path(run_dir).parent if ddp else None, batch_norm=not ddp, dropout=0.0 if ddp else 0.2)
    result = fit(task, Blobs(), Blobs(10), config, run_dir)
    if os.environ.get("RANK", "0") == "0":
        print("end of run at step", result.state["step"])


if __name__ == "__main__":
    main(*sys.argv[1:])
