"""Processes that are killed: imported once, then forked for each life, so that a life costs milliseconds.

`python kill_resume.py train FOLDER KILLS SEED` trains the toy undisturbed in FOLDER/calm, then in FOLDER/killed with KILLS SIGKILLs at seeded instants, every second one inside a save.
`python kill_resume.py save FOLDER KILLS SEED` kills a process that does nothing but save. Both print what happened as JSON.
"""
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch.utils.tensorboard.writer  # noqa: F401  imported before forking, to be quick after
from toy import OPTIONS, Blobs, Denoiser

from vfmkd_nb.core.checkpoint import checkpoints, load_checkpoint, newest, save_checkpoint
from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.train import TrainConfig, fit


def life(work, tell: int | None = None) -> int:
    """Fork a process that runs `work()`; returns its id. With `tell`, it writes a byte to that descriptor whenever it flushes a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if tell is not None:
            fsync = os.fsync
            os.fsync = lambda fd: (os.write(tell, b"."), fsync(fd))[1]
        work()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int, wait: float = 0.0) -> bool:
    """Whether a life ends by itself within `wait` seconds. Raises if it failed."""
    until = time.monotonic() + wait
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a life failed with status {status}")
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.001)


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def trainings(folder: Path, kills: int, seed: int) -> dict:
    """The toy, once undisturbed and once killed again and again."""
    config = TrainConfig.parse({**OPTIONS, "epochs": 16})

    def train(name: str, workers: int = 0) -> None:
        sys.stdout = open(folder / f"{name}.txt", "a")
        fit(Denoiser(), Blobs(), Blobs(10), config.with_(num_workers=workers), folder / name)

    began = time.monotonic()
    assert ended(life(lambda: train("calm")), 300)
    whole, draw = time.monotonic() - began, random.Random(seed)
    reached, in_save = [], 0
    for n in range(kills):
        if n % 2:  # inside a save: at one of its flushes (log, file and folder at each checkpoint), or a little after
            read, tell = os.pipe()
            pid = life(lambda: train("killed", workers=n % 3 % 2), tell)
            os.close(tell)
            in_save += all(os.read(read, 1) for _ in range(draw.randint(1, 12)))
            wait = draw.choice([0, 0, draw.uniform(0, 0.003)])
        else:
            pid, wait = life(lambda: train("killed", workers=n % 3 % 2)), draw.uniform(0, whole / 12)
        if ended(pid, wait):
            return {"error": f"the run ended before kill {n}"}
        kill(pid)
        if n % 2:
            os.close(read)
        path, state, damaged = newest(folder / "killed" / "checkpoints")
        if damaged:
            return {"error": damaged}
        reached.append(state.get("step", 0))
    assert ended(life(lambda: train("killed")), 300)
    return {"kills": kills, "in_save": in_save, "reached": reached, "seconds": whole}


def saves(folder: Path, kills: int, seed: int) -> dict:
    """A process that only saves, killed: which checkpoints cannot be read?"""
    import torch

    weights = {f"layer{i}": torch.randn(64, 64) for i in range(12)}
    draw, unreadable, temporary, steps = random.Random(seed), 0, 0, []

    def save() -> None:
        step = newest(folder)[1].get("step", 0)
        while True:
            step += 1
            save_checkpoint(folder, step, {"step": step, "model": {k: w + step for k, w in weights.items()}}, keep_last=2)

    for _ in range(kills):
        read, tell = os.pipe()
        pid = life(save, tell)
        os.close(tell)
        for _ in range(draw.randint(1, 4)):
            os.read(read, 1)
        time.sleep(draw.uniform(0, 0.004))
        kill(pid)
        os.close(read)
        for path in checkpoints(folder):
            try:
                load_checkpoint(path)
            except BadInput:
                unreadable += 1
        temporary += len(list(folder.glob(".step-*.tmp")))
        for path in folder.glob(".step-*.tmp"):
            path.unlink()
        steps.append(newest(folder)[1].get("step", 0))
    return {"kills": kills, "unreadable": unreadable, "torn_temporary_files": temporary, "steps": steps}


if __name__ == "__main__":
    what, folder, kills, seed = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps({"train": trainings, "save": saves}[what](Path(folder), int(kills), int(seed))))
