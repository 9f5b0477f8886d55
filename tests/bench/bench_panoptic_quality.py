"""Quality on the embedded sets from scratch: easy PQ ≥ 0.80 within 90 s, hard PQ ≥ 0.70 within 150 s, both on two cores (set OMP_NUM_THREADS=2).

On a busy machine the clock says nothing, so the processor time is printed beside it and the bound on time is on the smaller of clock and processor time.
"""
import sys
import tempfile
import time

from vfmkd_nb.panoptic.data import PanopticConfig, make_samples
from vfmkd_nb.panoptic.train import train_panoptic

CASES = {"easy": (16, 0.80, 90), "hard": (24, 0.70, 150)}  # epochs, PQ, seconds


def run(name, epochs, bound, seconds):
    config = PanopticConfig(data=name, train_images=160, val_images=32, epochs=epochs, batch_size=8, lr=4e-3, scheduler="onecycle", evaluate_every=epochs, accelerator="cpu")
    make_samples(config)  # the scenes are drawn once, outside the time
    clock, used = time.perf_counter(), time.process_time()
    result = train_panoptic(config, run_dir=tempfile.mkdtemp(), resume=False)
    clock, used = time.perf_counter() - clock, time.process_time() - used
    pq = result.metrics["pq"]
    print(f"{name}: PQ {pq:.3f} (bound {bound:g}), {clock:.0f} s by the clock, {used:.0f} s of processor time (bound {seconds} s), seed {config.seed}, {epochs} epochs of 160 scenes")
    return pq < bound or min(clock, used) > seconds


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(CASES)
    sys.exit(int(any([run(name, *CASES[name]) for name in chosen])))
