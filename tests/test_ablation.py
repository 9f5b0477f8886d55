"""Ablations as processes: killed half-way and completed, failures that hurt nobody, two workers against one."""
import importlib.util
import json
import os
import signal
import time

import psutil
import pytest
from tiny_report import records, start_vfmkd, vfmkd, wait_for

from vfmkd_nb.core.ablation import ablate, ablation_states, comparison
from vfmkd_nb.core.config import BadInput

BATCH = ("ablate", "tiny", "--grid", "mask=none,band,ring,soft", "--name", "masks", "--workers", "2")


def starts(folder) -> dict[str, int]:
    """How often each run's notebook was begun."""
    return {p.parent.name: len(p.read_text().splitlines()) for p in folder.glob("tiny/*/starts.txt")}


def states(folder) -> dict[str, str]:
    """The state of each run by its own record."""
    return {r["id"]: r["state"] for r in records(folder)}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.slow
def test_twelve_runs_killed_half_way_are_completed(project, tmp_path, how):
    """Four variants × three seeds on two workers; the same command again runs only what is missing."""
    reports = tmp_path / "reports"
    process = start_vfmkd(project, *BATCH, "--seeds", "3", "--set", "sleep=.2")
    wait_for(lambda: list(states(reports).values()).count("done") >= 5, 300, "five finished runs")
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.wait(60)
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 60, "the end of all its processes")
    before, begun = {k: v for k, v in states(reports).items() if v == "done"}, starts(reports)
    assert 5 <= len(before) < 12
    done = vfmkd(project, *BATCH, "--seeds", "3", "--set", "sleep=.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"12 runs, {len(before)} done already, {12 - len(before)} to do" in done.stdout
    after = starts(reports)
    assert list(states(reports).values()) == ["done"] * 12
    assert all(after[id] == begun[id] == 1 for id in before)  # no finished run was repeated
    found = comparison("masks")
    assert list(found.table["n"]) == [3] * 4 and len(found.verdicts) == 3
    again = vfmkd(project, *BATCH, "--seeds", "3", "--set", "sleep=.2")
    assert "12 done already, 0 to do" in again.stdout and starts(reports) == after


def test_a_failing_run_leaves_the_others_alone(project, tmp_path):
    done = vfmkd(project, "ablate", "tiny", "--grid", "mask=none,band", "--seeds", "2", "--set", "fail_at=1", "--name", "half")
    assert done.returncode == 1 and "seed of misfortune" in done.stdout
    assert ablation_states("half") == ["done", "failed", "done", "failed"]
    folder = tmp_path / "reports"
    assert (folder / "index.html").read_text().count("RuntimeError: seed of misfortune") >= 2
    assert "seed of misfortune" in (folder / "ablations" / "half" / "comparison.html").read_text()
    assert (folder / "ablations" / "half" / "comparison.csv").is_file() and (folder / "ablations" / "half" / "comparison.tex").is_file()
    ids = starts(folder)
    vfmkd(project, "ablate", "tiny", "--grid", "mask=none,band", "--seeds", "2", "--set", "fail_at=1", "--name", "half")
    assert sorted(starts(folder).values()) == [1, 1, 2, 2] and starts(folder).keys() == ids.keys()  # only the failed ones again


def test_an_ablation_is_locked(project, tmp_path):
    first = start_vfmkd(project, "ablate", "tiny", "--grid", "mask=none", "--seeds", "1", "--set", "sleep=1", "--set", "epochs=300", "--name", "one")
    wait_for(lambda: list((tmp_path / "reports").glob("tiny/*/record.json")), what="a record")
    with pytest.raises(BadInput, match="already running in another process"):
        ablate("tiny", grid={"mask": ["none"]}, seeds=1, fixed={"sleep": 1, "epochs": 300}, name="one", quiet=True)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130


@pytest.mark.slow
def test_workers_share_the_threads(project, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ablate("tiny", grid={"mask": ["none", "band"]}, seeds=1, workers=2, name="threads", quiet=True)
    cpus = len(os.sched_getaffinity(0))
    assert {r["environment"]["threads"] for r in records(tmp_path / "reports")} == {max(1, cpus // 2)}


@pytest.mark.slow
def test_two_workers_take_at_most_six_tenths_of_one(project, tmp_path, capsys):
    """Wall time of 12 runs that mostly wait, so that the test measures the pool and not the machine's other load; with the papermill overhead of a run."""
    seconds = {}
    for workers in (1, 2):
        start = time.monotonic()
        ablate("tiny", grid={"mask": ["none", "band", "ring", "soft"]}, seeds=3, fixed={"sleep": 2.5, "lr": .001*workers}, workers=workers, name=f"workers{workers}", quiet=True)
        seconds[workers] = time.monotonic() - start
    overhead = [r["overhead"]["papermill"] + r["overhead"]["html"] for r in records(tmp_path / "reports")]
    ratio = seconds[2] / seconds[1]
    with capsys.disabled():
        print(f"\n12 runs: {seconds[1]:.0f} s with one worker, {seconds[2]:.0f} s with two, ratio {ratio:.2f}; overhead of a run {sum(overhead)/len(overhead):.1f} s")
    assert ratio <= 0.6


@pytest.mark.slow
def test_ray_runs_the_same_tasks(project, tmp_path):
    """A local Ray cluster of two workers, started by the test."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra [ray])")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    try:
        ablate("tiny", grid={"mask": ["none", "band"]}, seeds=2, fixed={"fail_at": 1}, name="cluster", ray=address, quiet=True)
    finally:
        ray.shutdown()
    assert ablation_states("cluster") == ["done", "failed", "done", "failed"]
    assert json.loads((tmp_path / "reports" / "ablations" / "cluster" / "ablation.json").read_text())["verdicts"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_there_is_a_sentence(project):
    done = vfmkd(project, "ablate", "tiny", "--grid", "mask=none", "--seeds", "1", "--ray", "auto")
    assert done.returncode == 2 and "pip install 'vfmkd_nb[ray]'" in done.stderr
