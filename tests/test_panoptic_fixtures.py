"""The panoptic chapter against reference numbers and the official tool's figures; `tests/fixtures/panoptic/README.md` says where they come from."""
import json
from pathlib import Path

import numpy as np
import pytest

from vfmkd_nb.panoptic.coco import decode_ids, encode_ids, read_id_png
from vfmkd_nb.panoptic.metrics import panoptic_quality

FIXTURES = Path(__file__).parent / "fixtures" / "panoptic"
F = dict(np.load(FIXTURES / "fixtures.npz"))


# ---- PQ


def maps(case: str, side: str) -> tuple[list, list]:
    found = json.loads((FIXTURES / "pq_case" / case / f"{side}.json").read_text())
    return [(read_id_png(FIXTURES / "pq_case" / case / side / a["file_name"]), a["segments_info"]) for a in found["annotations"]], found.get("categories", [])


@pytest.mark.parametrize("case", ["tiny", "coco_sample"])
@pytest.mark.parametrize("against", ["pred", "gt"])
def test_pq_equals_the_official_tool(case, against):
    gt, categories = maps(case, "gt")
    pred, _ = maps(case, against)
    want = json.loads((FIXTURES / "pq_case" / case / "expected.json").read_text())["result" if against == "pred" else "gt_vs_itself"]
    if against == "gt":  # the tool is asked without crowds on the predicted side
        pred = [(np.where(np.isin(ids, [s["id"] for s in info if s["iscrowd"]]), 0, ids), [s for s in info if not s["iscrowd"]]) for ids, info in gt]
    got = panoptic_quality(pred, gt, categories)
    for name in ("All", "Things", "Stuff"):
        assert got[name] == pytest.approx(want[name], abs=1e-15, rel=1e-15), name
    for category, counts in want["counts"].items():
        row = got["per_class"][int(category)]
        assert (row["tp"], row["fp"], row["fn"]) == (counts["tp"], counts["fp"], counts["fn"]), category
        assert {k: row[k] for k in ("pq", "sq", "rq")} == pytest.approx(want["per_class"][category], abs=1e-15, rel=1e-15)


def test_codec():
    assert (encode_ids(F["codec_ids"][None])[0] == F["codec_rgb"]).all()
    assert (decode_ids(F["codec_rgb"][None].astype(np.uint8))[0] == F["codec_ids"]).all()
