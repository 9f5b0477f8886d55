"""A pruned detector on the embedded scenes: AP50 ≥ 0.45 at keep ratio 0.5 within 3 minutes on two cores.

Three minutes on two cores are 360 processor seconds; the program uses one thread and prints the clock beside the processor time, because the clock of a busy machine says nothing.

With `scratch` the detector prunes from the start. With `price` (5 minutes of processor time a seed for two variants) it measures what pruning costs instead: `cass.price` trains a dense detector a seed and continues it dense and pruned; seeds, deviations and paired intervals are printed. `price --seeds 0,1,2 --folder F` keeps the runs in F.
"""
import argparse
import sys
import tempfile
import time

import pandas as pd
import torch

from vfmkd_nb.cass.price import price_rows, price_table
from vfmkd_nb.cass.train import CassConfig, read_data, train_cass

BOUND, SECONDS = 0.45, 360
COMMON = dict(train_images=256, val_images=128, image_size=160, aifi_level=0, queries=30, batch_size=8, lr=2e-3, warmup_steps=50, evaluate_every=100, mask_every=1000, accelerator="cpu")
FIRST = dict(epochs=10, warmup_epochs=0, scheduler="constant")                       # the dense detector that the variants share
AFTER = dict(epochs=6, lr=1e-3, scheduler="cosine", warmup_steps=0, warmup_epochs=1) # each variant from there
DETACHED = {"cass_detach": True}
VARIANTS = {"dense": {"use_cass": False}, "keep 1": {"keep_ratio": 1.0, **DETACHED}, "keep 0.7": {"keep_ratio": 0.7, **DETACHED}, "keep 0.5": {"keep_ratio": 0.5, **DETACHED}, "keep 0.3": {"keep_ratio": 0.3, **DETACHED},
            "keep 0.5, CASS into the backbone": {"keep_ratio": 0.5}, "keep 0.5, document": {"keep_ratio": 0.5, "cass_kind": "document", **DETACHED}}


def measured(what, steps, train, seed=0):
    """Run `train(folder)`, which gives metrics; print them with the time used, and say whether both bounds hold."""
    clock, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = train(folder)
    clock, used = time.perf_counter() - clock, time.process_time() - used
    print(f"keep 0.5, {what}: AP {found['ap']:.3f}, AP50 {found['ap50']:.3f} (at least {BOUND}), {used:.0f} s of processor time (at most {SECONDS}), {clock:.0f} s by the clock, seed {seed}, {steps} steps of 8, {COMMON['val_images']} test scenes", flush=True)
    return found["ap50"] >= BOUND and used <= SECONDS


def quality(scratch):
    """Trained dense first and pruned then, as `price` does; or pruned from the start, with a warm-up of 3 epochs."""
    config = CassConfig(**COMMON, epochs=12, warmup_epochs=3, keep_ratio=0.5)
    read_data(config)                                                                # the scenes are drawn once, outside the time
    if scratch:
        return measured("pruned from the start", 384, lambda folder: train_cass(config, run_dir=folder).metrics)
    return measured("dense first", 512, lambda folder: price_rows(CassConfig(**COMMON, **FIRST, keep_ratio=1.0), AFTER, folder, {"keep 0.5": VARIANTS["keep 0.5"]}, [0]).iloc[-1])


def price(seeds, folder, names):
    rows = price_rows(CassConfig(**COMMON, **FIRST, keep_ratio=1.0), AFTER, folder, {n: VARIANTS[n] for n in names}, seeds)
    print(rows[[c for c in ("seed", "variant", "ap", "ap50", "kept_small", "kept_medium", "large_giou") if c in rows]].round(3).to_string(index=False))
    for metric in ("ap", "ap50"):
        print(metric)
        print(price_table(rows, metric).round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["price", "scratch"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", default="")
    parser.add_argument("--variants", default="dense; keep 0.5; keep 0.3", help="separated by semicolons: " + "; ".join(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pd.set_option("display.width", 220)
    if options.what == "price":
        price([int(s) for s in options.seeds.split(",")], options.folder or tempfile.mkdtemp(), [n.strip() for n in options.variants.split(";")])
    else:
        sys.exit(not quality(options.what == "scratch"))
