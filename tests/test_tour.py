"""The tour as a user runs it: by the command line, killed half-way and started again, with every file that passes from chapter to chapter."""
import json
import os
import re
import signal

import psutil
import pytest
from tiny_report import start_vfmkd, vfmkd, wait_for

from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.reports import plan_run
from vfmkd_nb.core.runs import content_digest

STATIONS = {
    "0_set": {"set"}, "1_edge": {"student"}, "2_promptable": {"promptable"}, "3_detector": {"detector", "detected"},
    "4_refiner": {"refiner", "coarse", "refined_coarse", "refined_detected"}, "5_masks": {"masks", "per_object"},
    "6_panoptic": {"network", "network_maps", "chain_maps"}, "7_table": set(),
}
TINY = ("--train-images", "4", "--val-images", "2", "--image-size", "128", "--detector-epochs", "2")


def stamps(folder) -> dict[str, int]:
    """When each station that is done was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("stations/*/station.json")}


@pytest.mark.parametrize("params, said", [
    ({"edge_epoch": 3}, "did you mean 'edge_epochs'"),
    ({"size": "medium"}, "expected 'small' or 'full'"),
    ({"seed": "one"}, "expected a valid integer"),
])
def test_wrong_parameters_start_nothing(params, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        plan_run("tour", params)


@pytest.fixture(scope="module")
def killed_and_done(tmp_path_factory, root):
    """A tour killed after its third station and started again: its folder, and the stamps of the stations at the kill."""
    reports = tmp_path_factory.mktemp("reports")
    env = {"VFMKD_HOME": str(root), "VFMKD_REPORTS": str(reports)}
    process = start_vfmkd(env, "report", "tour", *TINY)
    done = wait_for(lambda: next(reports.glob("tour/*/stations/2_promptable/station.json"), None), 300, "the third station")
    folder = done.parents[2]
    runner = psutil.Process(json.loads((folder / "record.json").read_text())["process"]["pid"])
    family = [*runner.children(recursive=True), runner]
    for p in family:
        os.kill(p.pid, signal.SIGKILL)
    assert process.wait(120) == 1
    before = stamps(folder)
    assert {"0_set", "1_edge", "2_promptable"} <= set(before) and "7_table" not in before
    again = vfmkd(env, "report", "tour", *TINY)
    assert again.returncode == 0, again.stderr + (folder / "log.txt").read_text()[-2000:]
    return folder, before


@pytest.mark.slow
def test_a_second_start_repeats_no_station_that_was_done(killed_and_done):
    folder, before = killed_and_done
    after = stamps(folder)
    assert set(after) == set(STATIONS)
    assert {name: after[name] for name in before} == before
    record = json.loads((folder / "record.json").read_text())
    assert record["state"] == "done"
    assert {name: s["kept"] for name, s in record["facts"]["stations"].items()} == {name: name in before for name in STATIONS}


@pytest.mark.slow
def test_files_between_the_chapters_are_what_the_record_says(killed_and_done):
    folder, _ = killed_and_done
    said = json.loads((folder / "record.json").read_text())["facts"]["stations"]
    for name, wanted in STATIONS.items():
        assert set(said[name]["files"]) == wanted, name
        for f in said[name]["files"].values():
            path = folder / "stations" / name / f["path"]
            assert content_digest(path) == f["sha256"]
            assert f["bytes"] == (path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file()))


@pytest.mark.slow
def test_the_student_is_the_encoder(killed_and_done):
    """The edge student's trunk is inside the promptable model's file; training has moved its weights, not its form."""
    from vfmkd_nb.core.backbones import load_trunk
    from vfmkd_nb.core.checkpoint import load_checkpoint, newest
    from vfmkd_nb.esam.promptable import read_model

    stations = killed_and_done[0] / "stations"
    student = stations / "1_edge" / "student.safetensors"
    trunk, model = load_trunk(student), read_model(stations / "2_promptable" / "student.safetensors")
    assert model.config["trunk"] == trunk.options
    begun = {name: load_checkpoint(newest(stations / "2_promptable" / name / "checkpoints")[0])["config"]["encoder"] for name in ("student", "random")}
    assert begun == {"student": str(student), "random": "random:tiny"}


@pytest.mark.slow
def test_metrics_and_page_have_every_station(killed_and_done):
    folder, _ = killed_and_done
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert {k.partition("/")[0] for k in metrics if "/" in k} == set(STATIONS)
    for key in ("1_edge/boundary_f_of_gradient", "2_promptable/miou_of_random_encoder", "2_promptable/miou_of_filled_box", "3_detector/ap50", "4_refiner/coarse_iou_after", "5_masks/miou detected, refined", "6_panoptic/pq the chain", "7_table/ms pruned detector"):
        assert key in metrics
    assert .4 < metrics["4_refiner/coarse_iou_before"] < .9  # boxes with a quarter of noise
    page = (folder / "page.html").read_text()
    assert page.count("<figure") == 8 and "pruned detector" in page and "promptable student" in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)
    index = (folder.parents[1] / "index.html").read_text()
    assert f"tour/{folder.name}/page.html" in index and f"tour/{folder.name}/report.html" in index
