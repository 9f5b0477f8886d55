"""The panoptic chapter against reference numbers and the official tool's figures; `tests/fixtures/panoptic/README.md` says where they come from."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vfmkd_nb.core.losses import dice_loss, masked_bce, soft_label_kd
from vfmkd_nb.panoptic.coco import decode_ids, encode_ids, read_id_png
from vfmkd_nb.panoptic.distill import class_distill_loss, mask_distill_loss
from vfmkd_nb.panoptic.losses import centre_focal_loss, gaussian_radius
from vfmkd_nb.panoptic.metrics import panoptic_quality
from vfmkd_nb.panoptic.model import LearnableFusion
from vfmkd_nb.panoptic.resolution import feature_alignment_loss, similarity_matrix

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


# ---- losses


def t(name: str) -> torch.Tensor:
    return torch.as_tensor(F[name])


@pytest.mark.parametrize("pool", [2, 4])
@pytest.mark.parametrize("kind", ["cos", "gram"])
def test_feature_alignment(pool, kind):
    """The maps are 8×12; a picture of 64×96 and a grid of 8/pool × 12/pool cells."""
    got = feature_alignment_loss(t("fa_seg"), t("fa_sr"), 1 / (8 * pool), (64, 96), normalize=kind == "cos")
    assert float(got) == pytest.approx(float(F[f"fa_pool{pool}_{kind}"]), abs=1e-8)
    assert 2 * float(got) == pytest.approx(float(F[f"fa_pool{pool}_{kind}_sumbatch"]), abs=1e-8)


def test_feature_alignment_gradient_and_limits():
    seg = t("fa_seg").clone().requires_grad_()
    feature_alignment_loss(seg, t("fa_sr"), 1 / 16, (64, 96)).backward()
    assert seg.grad.numpy() == pytest.approx(F["fa_pool2_cos_grad_seg"], abs=1e-8)
    align = lambda a, b, **k: float(feature_alignment_loss(a, b, 1 / 16, (64, 96), **k))
    assert align(t("fa_seg"), t("fa_seg")) == float(F["fa_identical"]) == 0
    assert align(3 * t("fa_seg"), t("fa_seg")) == pytest.approx(0, abs=1e-12)
    assert align(3 * t("fa_seg"), t("fa_seg"), normalize=False) == pytest.approx(float(F["fa_scaled_x3_gram"]), abs=1e-8)


@pytest.mark.parametrize("side", ["seg", "sr"])
def test_similarity_matrices(side):
    for kind in ("cos", "gram"):
        assert similarity_matrix(t(f"fa_{side}"), 1 / 32, (64, 96), normalize=kind == "cos").numpy() == pytest.approx(F[f"fa_pool4_{kind}_S{side}"], abs=1e-8)


def test_centre_focal():
    logits = t("hm_logits").clone().requires_grad_()
    each = centre_focal_loss(logits, t("hm_target"), t("hm_num_instances"), reduction="none")
    assert each.detach().numpy() == pytest.approx(F["hm_loss_elem"], abs=1e-6)
    centernet = each.sum() / int(F["hm_npos"])
    assert centernet.item() == pytest.approx(float(F["hm_loss_centernet"]), abs=1e-6)
    centernet.backward()
    assert logits.grad.numpy() == pytest.approx(F["hm_grad_centernet"], abs=1e-6)
    assert float(centre_focal_loss(t("hm_logits"), t("hm_target"), t("hm_num_instances"))) == pytest.approx(float(F["hm_loss_maskconver"]), abs=1e-6)


def test_radius():
    assert [gaussian_radius(h, w) for h, w in F["radius_hw"]] == pytest.approx(list(F["radius_corrected"]), abs=1e-8)


def test_masks():
    logits, target = t("mask_logits"), t("mask_target")
    assert dice_loss(logits, target, smooth=1.0, reduction="none").numpy() == pytest.approx(F["dice_naive_eps1"], abs=1e-8)
    assert masked_bce(logits, target, reduction="none").numpy() == pytest.approx(F["bce_per_mask"], abs=1e-8)


def test_fusion():
    levels = [t(f"fuse_p{i}") for i in range(3)]
    fusion = LearnableFusion(3).double()
    fusion.logits.data.copy_(t("fuse_logits"))
    assert fusion.weights().detach().numpy() == pytest.approx(F["fuse_weights"], abs=1e-8)
    assert fusion(levels).detach().numpy() == pytest.approx(F["fuse_out"], abs=1e-8)
    fast = LearnableFusion(3, "fast").double()
    fast.logits.data.copy_(t("fuse_logits"))
    assert fast.weights().detach().numpy() == pytest.approx(F["fuse_weights_fast"], abs=1e-8)


@pytest.mark.parametrize("temperature", [1, 4, 8])
def test_class_distillation(temperature):
    assert float(class_distill_loss(t("kd_student"), t("kd_teacher"), temperature)) == pytest.approx(float(F[f"kd_kl_T{temperature}"]), abs=1e-8)


def test_mask_distillation():
    for temperature in (1, 4):
        assert float(mask_distill_loss(t("kdm_student"), t("kdm_teacher"), temperature)) == pytest.approx(float(F[f"kdm_bce_T{temperature}"]), abs=1e-8)
    assert float(soft_label_kd(t("kdm_student"), t("kdm_teacher"), 1.0)) == pytest.approx(float(F["kdm_kl_T1"]), abs=1e-8)
