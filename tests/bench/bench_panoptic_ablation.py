"""The ablation of resolution distillation in one process: {low, low+SR, low+SR+FA, low+SR+FA+SAM (features of the embedded teacher), full} × {learned fusion, mean} × seeds on the easy scenes at 64×64, equal budget; means, deviations and paired tests.

    python tests/bench/bench_panoptic_ablation.py [epochs [seeds [variant …]]]      # such as low, or "low, mean" for the plain mean; by default all ten

`vfmkd report panoptic_ablation` does the same with a report per run, pictures and curves; this is what it costs without them. There is no bound: the figures are printed whatever they say.
"""
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from vfmkd_nb.core.stats import paired_test, verdict_sentence
from vfmkd_nb.panoptic.data import PanopticConfig
from vfmkd_nb.panoptic.train import train_panoptic

PATHS = {"low": {}, "low+SR": {"use_resolution_distill": True, "fa_loss_weight": 0.0}, "low+SR+FA": {"use_resolution_distill": True},
         "low+SR+FA+SAM": {"use_resolution_distill": True, "use_sam_distill": True}, "full": {"input_scale": 1.0}}


VARIANTS = {name + ", mean" * (not fusion): (name, fusion) for fusion in (True, False) for name in PATHS}


def run(variant, seed, epochs):
    """PQ and milliseconds of processor time a step of one run."""
    path, fusion = VARIANTS[variant]
    options = {"data": "easy", "image_size": 64, "train_images": 160, "val_images": 32, "batch_size": 8, "epochs": epochs, "lr": 6e-3, "scheduler": "onecycle", "evaluate_every": epochs, "input_scale": 0.5, "channels_last": True, "accelerator": "cpu", "audit_every": 0}
    config = PanopticConfig(**{**options, **PATHS[path]}, use_learnable_fusion=fusion, seed=seed)
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log, redirect_stdout(log), redirect_stderr(log):
        begin = time.process_time()
        found = train_panoptic(config, run_dir=Path(folder) / "run", resume=False)
        return found.metrics["pq"], 1e3 * (time.process_time() - begin) / len(found.fit.steps)


def main(epochs=8, seeds=3, *names):
    """Print the table of the named variants, by default of all; always 0."""
    names, found, cost = names or tuple(VARIANTS), {}, {}
    for seed in range(seeds):
        for name in names:
            pq, ms = run(name, seed, epochs)
            found.setdefault(name, []).append(pq)
            cost.setdefault(name, []).append(ms)
            print(f"seed {seed} {name}: PQ {pq:.3f}, {ms:.0f} ms a step with evaluation", flush=True)
    first = statistics.median(cost[names[0]])
    for name, values in found.items():
        print(f"{name:20s} PQ {statistics.mean(values):.3f} ± {statistics.stdev(values) if seeds > 1 else float('nan'):.3f}   {statistics.median(cost[name]):.0f} ms a step ({100 * (statistics.median(cost[name]) / first - 1):+.0f} %)")
    pairs = [(n, names[0]) for n in names[1:] if n in PATHS] + [(n, n + ", mean") for n in names if n + ", mean" in names]
    for a, b in pairs if seeds > 1 else ():
        print(verdict_sentence(a, b, paired_test(found[a], found[b]), seeds, "PQ", "max"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:]))
