"""What the gradient audit costs at its default interval: promised is at most 5 % of the training time.

The edge chapter's run (two loss terms, embedded data at 256 px) is trained with the audit; its processor time is set against that of all steps of the same run.
Run: python tests/bench/bench_audit.py
"""
import sys
import tempfile
import time
from pathlib import Path

import torch

from vfmkd_nb.core import train as loop
from vfmkd_nb.core.trust import GradientAudit
from vfmkd_nb.edge.data import EdgeConfig, make_samples
from vfmkd_nb.edge.train import EdgeTask

BOUND = 0.05


def clocked(spent: list, of):
    """`of`, adding its processor seconds to a list."""
    def call(*args):
        began = time.process_time()
        found = of(*args)
        spent.append(time.process_time() - began)
        return found
    return call


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = EdgeConfig(train_images=16, val_images=4, epochs=25, benchmark="off", evaluate_every=25)
    train, _, teacher = make_samples(config)
    audit = GradientAudit(lambda model: model.student.backbone.parameters(), ["edge", "feat"], "edge", config.audit_every)
    audits, steps, step = [], [], loop._step
    loop._step = clocked(steps, step)
    try:
        with tempfile.TemporaryDirectory() as folder:
            loop.fit(EdgeTask(config, teacher), train, None, config, Path(folder) / "run", audit=clocked(audits, audit))
    finally:
        loop._step = step
    share = sum(audits) / (sum(steps) - sum(audits))
    print(f"{len(audit.rows)} audits in {len(steps)} steps: {1e3 * sum(audits) / len(audit.rows):.0f} ms an audit, {1e3 * (sum(steps) - sum(audits)) / len(steps):.0f} ms a step, {100 * share:.1f} % of the time (promised: {100 * BOUND:.0f} %)")
    sys.exit(share > BOUND)
