"""A report notebook without torch, for tests that start many: it "trains" for as long as it is told, logs as a trainer does, and finishes with a number."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat

COMMAND = [sys.executable, "-c", "import sys; from vfmkd_nb.core.cli import main; sys.exit(main())"]
CELLS = {
    "imports": "import json, time\nfrom pathlib import Path\nfrom typing import Literal\nimport numpy as np, pandas as pd\nfrom vfmkd_nb.core.config import Config\nfrom vfmkd_nb.core.runs import start_run",
    "parameters": """mask: Literal["none", "band", "ring", "soft"] = "none"  # where the loss counts
epochs: int = 3       # passes over the data
lr: float = 1e-3
seed: int = 0
sleep: float = 0.     # seconds an epoch
fail_at: int = -1     # a seed that fails half-way
note: str = ""        # any text
""",
    "run": """class Options(Config):
    mask: str; epochs: int; lr: float; seed: int; sleep: float; fail_at: int; note: str
run = start_run("tiny", Options(mask=mask, epochs=epochs, lr=lr, seed=seed, sleep=sleep, fail_at=fail_at, note=note))
with open(run.dir/"starts.txt", "a") as f: f.write("started\\n")
score = {"none": .70, "band": .62, "ring": .72, "soft": .70}[mask] + np.random.default_rng(seed).normal(0, .01)
print("training", mask, seed)""",
    "train": """with run.phase("training"), open(run.dir/"steps.jsonl", "w") as log:
    for epoch in range(1, epochs + 1):
        print(json.dumps({"kind": "epoch", "epoch": epoch, "step": 10*epoch, "train": {"total": 1/epoch}, "metrics": {"f": score*(1 - .5**epoch)}}), file=log, flush=True)
        time.sleep(sleep)
if seed == fail_at: raise RuntimeError("seed of misfortune")""",
    "finish": """y, x = np.mgrid[:120, :180]
image = np.stack([60 + x, 40 + y, 120 + (np.hypot(x - 90, y - 60) < 90*score)*90], -1).clip(0, 255).astype("uint8")
scores = pd.DataFrame({"id": [f"image {i}" for i in range(8)], "f": score})
run.finish(main=("boundary_f", score, "max"), metrics={"loss": 1/epochs}, pictures={"student edges": image}, per_image=scores)
"finished" """,
}


def write_notebook(path: Path) -> Path:
    """The report as a notebook file."""
    cells = [nbformat.v4.new_markdown_cell("# Tiny\n\n> A report in miniature.")]
    cells += [nbformat.v4.new_code_cell(s, metadata={"tags": ["parameters"]} if n == "parameters" else {}) for n, s in CELLS.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)
    return path


def make_project(folder: Path) -> dict[str, str]:
    """A project of this one report; the environment that selects it."""
    write_notebook(folder / "nbs" / "reports" / "tiny.ipynb")
    return {"VFMKD_HOME": str(folder), "VFMKD_REPORTS": str(folder / "reports"), "VFMKD_DATA": str(folder / "data")}


def vfmkd(env: dict[str, str], *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The console command in a process of its own."""
    return subprocess.run([*COMMAND, *argv], env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True, timeout=300)


def start_vfmkd(env: dict[str, str], *argv: str) -> subprocess.Popen:
    """The console command, not waited for."""
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it
    return subprocess.Popen([*COMMAND, *argv], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard)


def records(reports: Path) -> list[dict]:
    """All records under a reports folder."""
    return [json.loads(p.read_text()) for p in sorted(reports.glob("*/*/record.json"))]


def wait_for(condition, seconds: float = 120, what: str = "the condition"):
    """The first true value of a condition, asked every 50 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {seconds} s")
