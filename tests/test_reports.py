"""Reports as processes: what is refused before a kernel starts, what a kill leaves behind, what the page asks for."""
import json
import os
import re
import signal
import time

import psutil
import pytest
from tiny_report import records, start_vfmkd, vfmkd, wait_for, write_notebook

from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.reports import ReportFailed, plan_run, run_report
from vfmkd_nb.core.runs import load_run


def test_a_report_is_whole_and_not_run_twice(project, tmp_path):
    folder = run_report("tiny", {"epochs": 2, "note": "__import__('os').abort(); {braces} \"quotes\" \\ ünï"}, quiet=True)
    run = load_run(folder)
    assert run.state == "done" and run.record["config"]["note"].startswith("__import__")  # text stays text
    assert run.record["phases"]["training"] >= 0 and run.record["peak_memory"]["process_mib"] > 20
    assert {"cells", "papermill", "html"} <= set(run.record["overhead"])
    for key in ("code", "environment", "seeds", "process", "config", "changed"):
        assert run.record[key], key
    assert run_report("tiny", {"epochs": 2, "note": run.record["config"]["note"]}, quiet=True) == folder
    assert (folder / "starts.txt").read_text() == "started\n"
    run_report("tiny", {"epochs": 2, "note": run.record["config"]["note"]}, force=True, quiet=True)
    assert (folder / "starts.txt").read_text() == "started\n" * 2  # not one of the files a run writes by itself: kept


def test_the_page_asks_nobody(project):
    page = (run_report("tiny", quiet=True) / "report.html").read_text()
    assert "finished" in page and "start_run" not in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)
    assert page.index("Content-Security-Policy") < page.index("<script") if "<script" in page else True


@pytest.mark.parametrize("params, said", [
    ({"epoch": 3}, "unknown option 'epoch'; did you mean 'epochs'?"),
    ({"epochs": "three"}, "option 'epochs' is 'three', expected a valid integer"),
    ({"epochs": 2.5}, "option 'epochs' is 2.5, expected a valid integer"),
    ({"epochs": True}, "option 'epochs': True is not a number"),
    ({"lr": None}, "option 'lr' is None, expected a valid number"),
    ({"lr": float("nan")}, "option 'lr' is nan, expected a finite number"),
    ({"mask": "bnad"}, "option 'mask' is 'bnad', expected 'none', 'band', 'ring' or 'soft'"),
])
def test_wrong_parameters_start_nothing(project, tmp_path, params, said):
    with pytest.raises(BadInput) as e:
        run_report("tiny", params)
    assert said in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "reports").exists()


def test_only_named_reports_or_given_paths(project, tmp_path):
    write_notebook(tmp_path / "elsewhere" / "mine.ipynb")
    for name in ("mine", "../../elsewhere/mine", "elsewhere/mine", ".", ""):
        with pytest.raises(BadInput):
            plan_run(name)
    assert plan_run(tmp_path / "elsewhere" / "mine.ipynb").report == "mine"
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(BadInput, match="no readable notebook"):
        plan_run(tmp_path / "broken.ipynb")


def test_an_unwritable_folder_is_a_sentence(project, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        run_report("tiny", out=tmp_path / "file" / "run", quiet=True)


def test_a_folder_of_another_run_is_refused(project, tmp_path):
    folder = run_report("tiny", {"epochs": 1}, out=tmp_path / "mine", quiet=True)
    with pytest.raises(BadInput, match="holds another run"):
        run_report("tiny", {"epochs": 2}, out=folder, quiet=True)


def test_a_failure_keeps_the_partial_report(project):
    with pytest.raises(ReportFailed, match="seed of misfortune") as e:
        run_report("tiny", {"fail_at": 0}, quiet=True)
    record = load_run(e.value.dir).record
    assert record["state"] == "failed" and "RuntimeError" in record["error"]["traceback"] and record["phases"]["training"] >= 0
    page = (e.value.dir / "report.html").read_text()
    assert "training none 0" in page and "seed of misfortune" in page


def test_sigterm_saves_what_there_is(project, tmp_path):
    process = start_vfmkd(project, "report", "tiny", "--sleep", "1", "--epochs", "300")
    log = wait_for(lambda: next(iter((tmp_path / "reports").glob("tiny/*/steps.jsonl")), None), what="the step log")
    kernel = wait_for(lambda: [p for p in psutil.Process(process.pid).children(recursive=True) if "ipykernel" in " ".join(p.cmdline())], what="the kernel")[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and "the same command goes on from here" in process.stdout.read()
    run = load_run(log.parent)
    assert run.state == "killed" and (log.parent / "report.html").is_file() and (log.parent / "report.ipynb").is_file()
    wait_for(lambda: not kernel.is_running(), 30, "the end of the kernel")


def test_a_killed_parent_leaves_no_orphan_and_is_recognised(project, tmp_path):
    process = start_vfmkd(project, "report", "tiny", "--sleep", "1", "--epochs", "300")
    log = wait_for(lambda: next(iter((tmp_path / "reports").glob("tiny/*/steps.jsonl")), None), what="the step log")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # papermill and its kernel
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 60, "the end of all its processes")
    assert load_run(log.parent).state == "killed"
    done = vfmkd(project, "report", "tiny", "--sleep", "0", "--epochs", "1")  # another run is not in its way
    assert done.returncode == 0, done.stderr


def test_a_killed_runner_is_recognised_by_its_process(project, tmp_path):
    process = start_vfmkd(project, "report", "tiny", "--sleep", "1", "--epochs", "300")
    log = wait_for(lambda: next(iter((tmp_path / "reports").glob("tiny/*/steps.jsonl")), None), what="the step log")
    record = json.loads((log.parent / "record.json").read_text())
    os.kill(record["process"]["pid"], signal.SIGKILL)
    assert process.wait(60) == 1
    assert load_run(log.parent).state == "killed" and records(tmp_path / "reports")[0]["error"]["type"] == "Killed"


def test_two_processes_do_not_share_a_run(project, tmp_path):
    first = start_vfmkd(project, "report", "tiny", "--sleep", "1", "--epochs", "300")
    wait_for(lambda: next(iter((tmp_path / "reports").glob("tiny/*/steps.jsonl")), None), what="the step log")
    second = vfmkd(project, "report", "tiny", "--sleep", "1", "--epochs", "300")
    assert second.returncode == 2 and "already running in process" in second.stderr
    first.send_signal(signal.SIGTERM)
    first.wait(60)
    time.sleep(1)
