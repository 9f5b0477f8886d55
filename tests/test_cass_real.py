"""The CASS reports on real pictures, from command to page: nuclei (one class, hundreds of small objects) and photographs (80 classes, padded); and a run on them opened in the explorer."""
import json

import numpy as np
import pytest

from vfmkd_nb.core.opened import open_run
from vfmkd_nb.core.reports import run_report

KINDS = ["original: focal, band 0.8", "fix B: focal", "fix C: focal", "obn"]


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [
    ("dsb2018_nuclei", {"train_images": 16, "val_images": 8, "image_size": 256, "layer": "P2_S4", "scorers": ["mlp", "mlp_xy", "conv"], "seeds": 2}),
    ("coco_small", {"train_images": 16, "val_images": 8, "image_size": 320, "layer": "P3_S8", "resize": "long_side_pad", "large_edge": 96.0, "seeds": 2}),
])
def test_the_bias_report(name, options, real_data, tmp_path):
    """It ends, says a verdict, shows what is kept, and every kind has a recall for each size that occurs."""
    folder = run_report("cass_bias", {"images_dir": str(real_data / name), "kinds": KINDS, "steps": 20, **options}, out=tmp_path / "run", quiet=True)
    run, page = open_run(folder).run, (folder / "report.html").read_text()
    facts = run.record["facts"]["data"]
    assert run.state == "done" and facts["train"]["images"] == options["train_images"] and facts["train"]["objects"] > 50
    numbers = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert all(np.isfinite(v) for v in numbers.values() if isinstance(v, float)) and 0 <= run.main["value"] <= 1
    assert "keeps the worse-off size best" in page and page.count("<img") >= 1
    assert ("padded pictures are not turned" in page) == ("resize" in options)


@pytest.mark.slow
def test_a_detector_on_nuclei_opens_in_the_explorer(real_data, tmp_path):
    """A short run of the report; then its worst pictures with its own tokens and scorer, at another keep ratio as well."""
    options = {"images_dir": str(real_data / "dsb2018_nuclei"), "train_images": 16, "val_images": 6, "image_size": 128, "queries": 60, "epochs": 4, "warmup_epochs": 1, "batch_size": 4, "keep_ratio": 0.5, "audit_every": 0}
    opened = open_run(run_report("cass_detector", options, out=tmp_path / "run", quiet=True))
    assert {"id", "loss", "objects", "detected", "kept"} <= set(opened.scores) and len(opened.scores) == 6
    explorer = opened.explore(count=2)
    assert explorer.controls["image"].value == opened.worst(n=1)["id"][0] and list(explorer.scorers) == [3, 4]
    kept = explorer.found["obn"].kept
    assert kept.sum() == 128 and explorer.text.startswith(f"{len(explorer.cases[explorer.controls['image'].value].boxes)} boxes")
    explorer.controls["keep"].value = 0.25
    assert explorer.found["obn"].kept.sum() == 64
