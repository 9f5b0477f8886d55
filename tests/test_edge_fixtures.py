"""The edge chapter's losses against reference numbers and against plain loops; the document's feature files, damaged in every way tried.

`tests/fixtures/edge/README.md` says where the numbers come from. The tolerance is 1e-5 relative in float64; in float32 it is 1e-5 of the largest entry.
"""
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vfmkd_nb.core.config import BadInput
from vfmkd_nb.edge.losses import FGD_PRESETS, MASKS, EdgeLoss, FGDLoss, dilate, fgd_attention
from vfmkd_nb.edge.targets import NpzTeacher, fgd_masks, read_npz, union_masks

FIXTURES = Path(__file__).parent / "fixtures" / "edge"
FGD = dict(np.load(FIXTURES / "fgd.npz"))
EDGE = dict(np.load(FIXTURES / "edge.npz"))
BOXES, IMG_HW = list(torch.tensor(FGD["boxes_xyxy"])), tuple(FGD["img_hw"].tolist())
DTYPES = (torch.float64, torch.float32)
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])]


def close(got, want, dtype=torch.float64):
    """Equal to 1e-5 relative: of each entry in float64 (entries below a millionth of the largest: of that), of the largest in float32."""
    got, want = np.asarray(torch.as_tensor(got).detach().cpu().double()), np.asarray(want, dtype=float)
    largest = np.abs(want).max()
    floor = 1e-6 * largest if dtype == torch.float64 else largest
    assert got.shape == want.shape
    assert (np.abs(got - want) <= 1e-5 * np.maximum(np.abs(want), floor) + 1e-15).all(), np.abs(got - want).max()


def published(case: str, channels: int, dtype: torch.dtype, device: str = "cpu") -> FGDLoss:
    loss = FGDLoss(channels, 8)
    loss.load_state_dict({k.removeprefix(f"{case}.weight."): torch.tensor(v) for k, v in FGD.items() if k.startswith(f"{case}.weight.")}, strict=True)
    return loss.to(device, dtype)


# ---- FGD

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case, key, channels", [("A", "student", 8), ("B", "student5", 5)])
def test_fgd(case, key, channels, dtype, device):
    loss = published(case, channels, dtype, device)
    student, teacher = torch.tensor(FGD[key], dtype=dtype, device=device).requires_grad_(), torch.tensor(FGD["teacher"], dtype=dtype, device=device)
    out = loss(student, teacher, [b.to(device) for b in BOXES], IMG_HW)
    out["total"].backward()
    for ours, theirs in (("fg", "fg"), ("bg", "bg"), ("attention", "mask"), ("relation", "rela"), ("total", "total")):
        close(out[ours], FGD[f"{case}.{theirs}"], dtype)
    close(student.grad, FGD[f"{case}.grad_student"], dtype)
    largest = max(float(v) for k, v in FGD.items() if k.startswith(f"{case}.gradnorm."))
    for name, p in loss.named_parameters():
        want, got = float(FGD[f"{case}.gradnorm.{name}"]), 0.0 if p.grad is None else p.grad.norm().item()
        assert abs(got - want) <= 1e-5 * want + (1e-9 if dtype == torch.float64 else 1e-5) * largest, (name, got, want)


@pytest.mark.parametrize("case, key, channels", [("A", "student", 8), ("B", "student5", 5)])
def test_fgd_attention_and_weights(case, key, channels):
    loss, teacher = published(case, channels, torch.float64), torch.tensor(FGD["teacher"]).double()
    student = torch.tensor(FGD[key]).double()
    for which, features in (("t", teacher), ("s", student if loss.align is None else loss.align(student))):
        spatial, channel = fgd_attention(features, 0.5)
        close(spatial, FGD[f"{case}.S_{which}"])
        close(channel, FGD[f"{case}.C_{which}"])
    for got, name in zip(fgd_masks(BOXES, IMG_HW, (12, 16), dtype=torch.float64), ("mask_fg", "mask_bg")):
        close(got, FGD[f"{case}.{name}"])


def test_document_variants():
    student, teacher = (torch.tensor(FGD[k]).double() for k in ("student", "teacher"))
    for got, name in zip(union_masks(BOXES, IMG_HW, (12, 16)), ("V_fg_map", "V_bg_map")):
        assert torch.equal(got, torch.tensor(FGD[name])[:, 0])
    edges = torch.tensor(FGD["V_edge_map"]).double()[:, 0]
    assert FGD_PRESETS["document"]["alpha_edge"] == 2e-3
    v1 = FGDLoss.preset("document", 8, 8).double()(student, teacher, BOXES, IMG_HW)["total"]
    close(v1, FGD["V1.total"])
    boosted = FGDLoss(8, 8, temp=1.0, alpha_fgd=0, beta_fgd=0, gamma_fgd=0, lambda_fgd=0, alpha_edge=1.0).double()(student, teacher, BOXES, IMG_HW, edges)
    one_image = [FGDLoss(8, 8, temp=1.0, alpha_fgd=0, beta_fgd=0, gamma_fgd=0, lambda_fgd=0, alpha_edge=1.0).double()(student[i:i+1], teacher[i:i+1], BOXES[i:i+1], IMG_HW, edges[i:i+1])["total"] for i in (0, 1)]
    close(boosted["total"], (one_image[0] + one_image[1]).item() / 2)
    raw = (edges.sum((1, 2)) * torch.stack(one_image)).sum() / 2                      # the normalisation undone
    close(v1 + 2e-3 * raw, FGD["V2.total"])
    weighty = FGDLoss(8, 8, temp=1.0, alpha_fgd=1.0, beta_fgd=0.25, gamma_fgd=0, lambda_fgd=0, foreground="union").double()
    close(weighty(student, teacher, BOXES, IMG_HW)["total"] + 2 * raw, FGD["V3.total"])


@pytest.mark.parametrize("channels, align", [(8, False), (5, True)])
def test_published_names(channels, align):
    """Exactly the parameter names of the published checkpoints, the last convolutions at zero."""
    state = FGDLoss(channels, 8).state_dict()
    names = {f"conv_mask_{s}.{p}" for s in "st" for p in ("weight", "bias")} | {f"channel_add_conv_{s}.{i}.{p}" for s in "st" for i in (0, 1, 3) for p in ("weight", "bias")}
    assert set(state) == names | ({"align.weight", "align.bias"} if align else set())
    assert not any(state[f"channel_add_conv_{s}.3.{p}"].any() for s in "st" for p in ("weight", "bias"))


def test_presets():
    got = {k: tuple(v[n] for n in ("temp", "alpha_fgd", "beta_fgd", "gamma_fgd", "lambda_fgd")) for k, v in FGD_PRESETS.items()}
    assert got == {"official": (0.5, 1e-3, 5e-4, 1e-3, 5e-6), "two_stage": (0.5, 5e-5, 2.5e-5, 5e-5, 5e-7), "fcos": (0.8, 1.6e-3, 8e-4, 8e-4, 8e-6), "document": (1.0, 1e-3, 5e-4, 0, 0)}


# ---- the edge loss

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options, scale, masked, expected", [
    ({}, 1.0, False, {"total": "orig.unmasked.total_loss", "bce": "orig.unmasked.bce_loss", "dice": "orig.unmasked.dice_loss", "grad": "orig.unmasked.grad"}),
    ({}, 1.0, True, {"total": "orig.masked_k3.total_loss", "bce": "orig.masked_k3.bce_loss", "dice": "orig.masked_k3.dice_loss", "grad": "orig.masked_k3.grad", "coverage": "orig.masked_k3.edge_mask_ratio"}),
    ({"dice_reduction": "batch"}, 1.0, True, {"bce": "seed.k3.bce", "dice": "seed.k3.dice_batch", "grad": "seed.k3.total_batchdice_grad", "coverage": "seed.k3.coverage"}),
    ({}, 1.0, True, {"dice": "seed.k3.dice_per_sample_mean"}),
    ({"focal_weight": 0.5}, 1.0, False, {"total": "orig.advanced_f0.5.total_loss", "bce": "orig.advanced_f0.5.bce_loss", "dice": "orig.advanced_f0.5.dice_loss", "focal": "orig.advanced_f0.5.focal_loss"}),
    ({}, 0.6, True, {"total": "orig.masked_soft0.6.total_loss", "bce": "orig.masked_soft0.6.bce_loss", "dice": "orig.masked_soft0.6.dice_loss"}),
], ids=["unmasked", "band", "batch-dice", "per-sample", "focal", "grey"])
def test_edge(options, scale, masked, expected, dtype, device):
    logits, target = torch.tensor(EDGE["logits"], dtype=dtype, device=device).requires_grad_(), scale * torch.tensor(EDGE["target"], dtype=dtype, device=device)
    out = EdgeLoss(**options)(logits, target, masked)
    out["total"].backward()
    for name, key in expected.items():
        close(logits.grad if name == "grad" else out[name], EDGE[key], dtype)
    assert out["empty"].item() == 1


@pytest.mark.parametrize("name, value", [("all_one", 12.0), ("all_zero", -12.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_degenerate(name, value, masked):
    target = torch.tensor(EDGE["target"]).double()[:1]
    out = EdgeLoss()(torch.full_like(target, value), target, masked)
    close(torch.stack([out["bce"], out["dice"]]), EDGE[f"degenerate.{name}.masked{int(masked)}"])


def by_loops(logits, target, mask, k):
    """BCE and Dice of one image (H, W), pixel by pixel from their definitions; and the weights of the pixels, for BCE and for Dice."""
    h, w = target.shape
    near = lambda y, x: any(target[v, u] > 0 for v in range(max(0, y - k // 2), min(h, y + k // 2 + 1)) for u in range(max(0, x - k // 2), min(w, x + k // 2 + 1)))
    weights = np.zeros((2, h, w))
    for y in range(h):
        for x in range(w):
            inside, edge = near(y, x), target[y, x] > 0
            both = {"none": 1, "band": inside, "band_soft": 1 if inside else 0.1, "bce_band": inside, "ring_ignore": edge or not inside}[mask]
            weights[:, y, x] = both, 1 if mask == "bce_band" else both
    bce = both = each = 0.0
    for y in range(h):
        for x in range(w):
            z, t, (m, n) = logits[y, x], target[y, x], weights[:, y, x]
            p = 1 / (1 + math.exp(-z))
            bce -= m * (t * math.log(p) + (1 - t) * math.log(1 - p))
            both, each = both + n * p * t, each + n * (p + t)
    return bce / max(weights[0].sum(), 1), 1 - (2 * both + 1e-6) / (each + 1e-6), weights


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("edges", [[(2, 2)], [(0, 0)], [(1, 1), (1, 2), (4, 4)], []], ids=["middle", "corner", "three", "none"])
def test_masks_by_loops(mask, edges):
    rng = np.random.default_rng(3)
    logits, target = rng.normal(size=(5, 5)), np.zeros((5, 5))
    for y, x in edges:
        target[y, x] = 1
    bce, dice, weights = by_loops(logits, target, mask, 3)
    x = torch.tensor(logits)[None].requires_grad_()
    out = EdgeLoss(mask=mask)(x, torch.tensor(target)[None], True)
    out["total"].backward()
    close(out["bce"], bce)
    close(out["dice"], dice)
    free = (weights == 0).all(0)
    assert not x.grad[0][torch.tensor(free)].any(), "a gradient where the mode says there is none"
    if edges:
        assert (x.grad[0][torch.tensor(~free)] != 0).all()
    else:
        assert out["empty"].item() == 1 and out["coverage"].item() == 0
        assert mask != "band" or (out["total"].item() == 0 and not x.grad.any())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_images_do_not_mix(mask, k):
    """Two images in one batch give the mean of their losses, whatever the mask."""
    logits, target = (torch.tensor(EDGE[n]).double() for n in ("logits", "target"))
    loss = EdgeLoss(kernel_size=k, mask=mask)
    whole = loss(logits, target, True)["total"]
    close(whole, torch.stack([loss(logits[i:i+1], target[i:i+1], True)["total"] for i in range(3)]).mean())


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_dilation_is_scipys(k):
    from scipy.ndimage import binary_dilation
    target = EDGE["target"] > 0
    for t, got in zip(target, dilate(torch.tensor(target), k).bool().numpy()):
        assert (got == binary_dilation(t, np.ones((k, k)))).all()


# ---- the document's files

def write_npz(path: Path, compressed: bool, **changes) -> dict:
    rng = np.random.default_rng(5)
    found = {"P4_S16": rng.normal(size=(1, 4, 4, 4)).astype("f4"), "edge_64x64": (rng.random((64, 64)) > 0.9).astype("u1"), "fg_map_64x64": rng.random((64, 64)).astype("f4"), "bboxes": np.array([[1.0, 2, 3, 4]]), **changes}
    (np.savez_compressed if compressed else np.savez)(path, **found)
    return found


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_npz(tmp_path, compressed):
    """Whatever bytes are cut off or flipped: the file is refused by name, or every value is what was written."""
    path = tmp_path / "a_features.npz"
    write_npz(path, compressed)
    whole, before = path.read_bytes(), read_npz(path)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[:rng.integers(0, len(data))]
        else:
            for at in rng.integers(0, len(data), 1 + trial % 5):
                data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            after = read_npz(path)
        except BadInput as e:
            assert str(path) in str(e)
            refused += 1
        else:
            assert set(after) <= set(before) and all(torch.equal(after[k], before[k]) for k in after), trial
    assert refused > 100


@pytest.mark.parametrize("changes, says", [
    ({"P4_S16": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ({"P4_S16": np.zeros((4, 4))}, "expected 3 dimensions"),
    ({"P4_S16": np.full((4, 4, 4), np.inf)}, "NaN or infinity"),
    ({"fg_map_64x64": np.full((64, 64), np.nan)}, "NaN or infinity"),
    ({"P4_S16": np.array(["x"])}, "cannot be read"),
    ({"P4_S16": np.zeros((0, 4, 4))}, "is empty"),
])
def test_wrong_npz(tmp_path, changes, says):
    write_npz(tmp_path / "a_features.npz", False, **changes)
    with pytest.raises(BadInput, match=says):
        read_npz(tmp_path / "a_features.npz")


def test_npz_teacher_names_the_odd_file(tmp_path):
    write_npz(tmp_path / "a_features.npz", False)
    write_npz(tmp_path / "b_features.npz", False, P4_S16=np.ones((6, 4, 4)))
    teacher = NpzTeacher(tmp_path)
    assert teacher.channels == {"P4_S16": 4} and teacher.id.startswith("npz:")
    assert torch.equal(teacher.read("a")["boxes_xywh"], torch.tensor([[1.0, 2, 3, 4]]))
    with pytest.raises(BadInput, match="expected 4 channels as in the other files"):
        teacher.read("b")
    with pytest.raises(BadInput, match="c_features.npz does not exist"):
        teacher.read("c")
    before = teacher.id
    write_npz(tmp_path / "b_features.npz", False)
    assert NpzTeacher(tmp_path).id != before, "the id must follow the content"
