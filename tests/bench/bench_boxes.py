"""The chapter's figures at the real size: IoU from about 0.62 to at least 0.90 in at most 90 s, at least 0.15 above the noise control,
fewer than 1 % of the boxes made worse (and, without a bound, at noise 0.1, where most of them are nearly right), the document's bounds in every step, a second run with
100 % hits and a feature phase at least 5 times as fast, store reads at least 0.6 times as fast as bare safetensors on the same files, and under 10 s a batch.

Seconds are processor seconds of one thread, measured in one run, features included: wall time says more about the neighbours.
Run: python tests/bench/bench_boxes.py
"""
import statistics
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file

from vfmkd_nb.boxes.data import BoxConfig
from vfmkd_nb.boxes.measure import cold_and_warm
from vfmkd_nb.boxes.train import batch_phases, noise_sweep, over_bounds, train_boxes, train_controls
from vfmkd_nb.core.features import FeatureStore


def read_ratio(samples, store: FeatureStore, rounds: int = 9) -> float:
    """Speed of the store's reads over that of `load_file` on the run's own entries, read in turn; `load_file` maps a file, so both touch every page."""
    records = [samples.record(r) for r in samples.data.images]
    ways = {"store": lambda r: store.get(r), "bare": lambda r: load_file(store.path(r))}
    for r in records:  # warm both: the store verifies here
        assert all(way(r)[samples.config.layer].equal(ways["bare"](r)[samples.config.layer]) for way in ways.values())
    times = {name: [] for name in ways}
    for k in range(rounds):
        for r in records:
            for name in sorted(ways, reverse=bool(k % 2)):
                begin = time.perf_counter()
                ways[name](r)[samples.config.layer].view(torch.uint8).flatten()[::4096].sum()
                times[name].append(time.perf_counter() - begin)
    return statistics.median(times["bare"]) / statistics.median(times["store"])


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        result = train_boxes(BoxConfig(passport_samples=0), run_dir=f"{folder}/run", store=FeatureStore(f"{folder}/store"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        warm = FeatureStore(f"{folder}/store")
        control = train_controls(BoxConfig(), f"{folder}/controls", ["noise"], warm)["noise"]
        phases, batch, m = cold_and_warm(result.train), batch_phases(result.task, result.train), result.metrics
        sweep, ratio = noise_sweep(result.task, result.val), read_ratio(result.val, warm)
    speedup = phases.loc["cold", "seconds"] / phases.loc["warm", "seconds"]
    print(sweep.round(4).to_string())
    figures = {
        f"mean IoU {m['iou_before']:.3f} -> {m['iou']:.3f} (>= 0.90)": m["iou"] >= .90,
        f"{cpu:.0f} s of processor time, {wall:.0f} s by the clock (<= 90)": cpu <= 90,
        f"{m['iou'] - control.metrics['iou']:+.3f} above the noise control {control.metrics['iou']:.3f} (>= 0.15)": m["iou"] - control.metrics["iou"] >= .15,
        f"{m['made_worse']:.2%} made worse, {sweep.loc[.1, 'made_worse']:.2%} at noise 0.1 (< 1 % at 0.25)": m["made_worse"] < .01,
        f"largest loss, L1, IoU loss in any step {result.fit.steps['total'].max():.3f}, {result.fit.steps['l1'].max():.3f}, {result.fit.steps['iou'].max():.3f} (< 10, 5, 0.5)": not over_bounds(result.fit.steps),
        f"warm feature phase {speedup:.0f}x (>= 5x), second run {warm.stats.hit_rate:.0%} hits": speedup >= 5 and warm.stats.hit_rate == 1,
        f"store reads {ratio:.2f}x bare safetensors (>= 0.6x)": ratio >= .6,
        f"{sum(batch.values()):.3f} s a batch (< 10)": sum(batch.values()) < 10,
    }
    for said, held in figures.items():
        print("ok    " if held else "MISSED", said)
    return 0 if all(figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
