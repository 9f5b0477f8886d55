"""Each malformed COCO file of the shared data ends as its manifest says: refused, skipped, kept; never a crash, never in silence."""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import shared_data

from vfmkd_nb.core.coco import (
    CocoData,
    UnreadableImage,
    doctor,
    object_mask,
    read_coco,
    read_image,
)
from vfmkd_nb.core.config import BadInput

CASES = shared_data() / "coco_malformed"
MANIFEST = {c["case"]: c["expect"] for c in json.loads((CASES / "manifest.json").read_text())} if CASES.is_dir() else {}
pytestmark = pytest.mark.skipif(not MANIFEST, reason=f"no {CASES} (set VFMKD_SHARED)")

KNOWN = {"ok", "skip", "skip_or_error", "error", "clip", "default", "warn", "skip_or_box", "ok_ignored", "ok_empty", "ok_documented", "error_or_coerce"}
# Words of the reason that each case must be counted under, or of the sentence that refuses it.
REASONS = {
    "01_missing_image_file": "image file is missing",
    "02_zero_width_box": "box has no area",
    "03_negative_size_box": "box has no area",
    "04_box_outside_image": "box lies outside the image",
    "05_box_partly_outside": "box reaches over the border, cut",
    "06_polygon_two_points": "polygon has fewer than three points, kept as a box",
    "08_polygon_empty": "no segmentation, kept as a box",
    "09_polygon_zero_area": "polygon covers no pixel, kept as a box",
    "13_rle_corrupt_string": "RLE is damaged",
    "14_rle_counts_too_long": "RLE is damaged",
    "15_iscrowd_polygon": "crowd region, kept and marked",
    "16_missing_iscrowd": "iscrowd is missing, taken as 0",
    "17_missing_area": "area is missing, computed",
    "18_missing_bbox": "bbox is missing, taken from the mask",
    "20_category_unknown": "category is not listed",
    "22_duplicate_category_name": "two categories have one name",
    "23_duplicate_annotation_ids": "annotation id occurs twice",
    "25_annotation_without_image": "annotation of an image that is not listed",
    "26_nan_coordinates": "is not finite",
    "27_infinite_coordinates": "is not finite",
    "29_ids_as_strings": "image_id is written as str, converted",
    "30_xyxy_box": "bbox looks like x1, y1, x2, y2",
    "34_null_segmentation": "no segmentation, kept as a box",
    "35_truncated_json": "is not whole JSON",
    "36_non_utf8_json": "is not UTF-8",
    "38_path_traversal": "leaves the image folder",
    "39_absolute_path": "leaves the image folder",
    "42_zero_byte_image": "image cannot be read",
    "51_size_mismatch": "size in the JSON is not the picture's",
    "52_image_bomb": "too many pixels",
}


def _read(case: str, **options) -> CocoData:
    return read_coco(CASES / case / "annotations.json", CASES / case / "images", **options)


def _use(data: CocoData) -> None:
    """Read every picture and draw every mask: what the reader lets through must be usable."""
    for record in data.images:
        pixels = read_image(record)
        assert pixels.shape == (3, record.height, record.width) and pixels.dtype == torch.uint8
        for obj in record.objects:
            x1, y1, x2, y2 = obj.bbox_xyxy
            assert 0 <= x1 < x2 <= record.width and 0 <= y1 < y2 <= record.height
            assert 0 <= obj.category < len(data.categories) and obj.area > 0
            if obj.segmentation is not None:
                assert object_mask(obj, record.height, record.width).any()


def _assert_counted(data: CocoData, words: str, outcome: str) -> None:
    table = data.problems.table()
    hits = table[table.reason.str.contains(words, regex=False)]
    assert hits["count"].tolist() == [1] and hits["outcome"].tolist() == [outcome], table.to_string()


@pytest.mark.parametrize("case", MANIFEST)
def test_case_ends_as_the_manifest_says(case):
    expect = MANIFEST[case]
    assert expect in KNOWN, f"the manifest's outcome {expect!r} is new: say here what it means"
    words = REASONS.get(case, "")
    if expect == "error":
        with pytest.raises(BadInput, match=words):
            _read(case)
        return
    if case == "41_truncated_jpeg":  # its header is whole: see test_truncated_jpeg_is_found_when_read
        return
    data = _read(case)
    _use(data)
    n = data.summary()
    if expect == "ok":
        assert n["objects"] == 2 and n["skipped"] == n["changed"] == n["doubtful"] == 0
    elif expect == "ok_empty":
        assert (n["images"], n["objects"]) == (2, 0) and data.problems.total() == 0
    elif expect == "ok_documented":
        assert n["objects"] == 2 and data.problems.total() == 0
    elif expect == "ok_ignored":
        assert [o.iscrowd for o in data.objects] == [True, False]
        _assert_counted(data, words, "noted")
    elif expect in ("skip", "skip_or_error"):
        assert n["objects"] == 1
        _assert_counted(data, words, "skipped")
    elif expect == "skip_or_box":
        first = data.images[0].objects[0]
        assert first.segmentation is None and first.bbox_xyxy == (50, 50, 120, 130)
        _assert_counted(data, words, "noted" if words.startswith("no segmentation") else "changed")
        without = _read(case, require_masks=True)
        assert without.summary()["objects"] == 1 and without.problems.counts == {"object has no usable mask": 1}
    else:
        assert n["objects"] == 2
        _assert_counted(data, words, {"clip": "changed", "default": "noted", "warn": "doubtful", "error_or_coerce": "changed"}[expect])


@pytest.mark.parametrize("case", MANIFEST)
def test_strict_reading_raises_where_something_is_lost(case):
    """`strict=True` raises and names the file wherever a record is refused, skipped, changed or doubtful."""
    try:
        lenient = _read(case)
    except BadInput:
        lenient = None
    if lenient is not None and not lenient.problems.total("skipped", "changed", "doubtful"):
        _read(case, strict=True)
    else:
        with pytest.raises(BadInput, match=case):
            _read(case, strict=True)


@pytest.mark.parametrize("case", MANIFEST)
def test_doctor_lists_every_case_and_never_raises(case):
    table = doctor(CASES / case / "annotations.json", CASES / case / "images")
    words = "image cannot be read" if case == "41_truncated_jpeg" else REASONS.get(case)
    if words is None:
        assert table.empty
    else:
        assert (table.reason + " " + table.detail).str.contains(words, regex=False).any(), table.to_string()
    if MANIFEST[case] == "error":
        assert "refused" in table.outcome.values


def test_truncated_jpeg_is_found_when_read():
    """A JPEG cut in half has a whole header: a clear error when it is read, a counted skip when the set is decoded."""
    data = _read("41_truncated_jpeg")
    with pytest.raises(UnreadableImage, match=r"41_truncated_jpeg.*cannot be decoded"):
        read_image(data.images[0])
    decoded = _read("41_truncated_jpeg", verify_images="decode")
    _use(decoded)
    _assert_counted(decoded, "image cannot be read", "skipped")


@pytest.mark.parametrize("verify", ["True", "False", "'decode'"])
def test_nan_never_reaches_pycocotools(verify):
    """In a process of its own: what pycocotools does with a NaN is to kill the process, or to hang."""
    if "26_nan_coordinates" not in MANIFEST:
        pytest.skip("the manifest has no such case")
    program = f"""
from vfmkd_nb.core.coco import *
folder = {str(CASES / "26_nan_coordinates")!r}
data = read_coco(folder + "/annotations.json", folder + "/images", verify_images={verify})
for r in data.images:
    for o in r.objects: object_mask(o, r.height, r.width)
bad = ObjectRecord(1, 1, 0, 1, (0., 0., 9., 9.), [[float("nan"), 50., 120., 50., 120., 130.]], False, 9.)
try: object_mask(bad, 256, 256)
except ValueError as e: print(len(list(data.objects)), data.problems.total("skipped"), type(e).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "BadInput"]), done.stderr


def test_special_pictures_hold_the_same_picture():
    """The control's picture as 16-bit grey, CMYK, RGBA or PNG named .jpg: the same colours, or the same luminance, and nothing saturates."""
    control = read_image(_read("00_good").images[0]).float()
    luminance = torch.einsum("chw,c->hw", control, torch.tensor([0.299, 0.587, 0.114])).expand(3, -1, -1)
    for case, expected in {"46_greyscale": luminance, "48_png_16bit": luminance, "47_cmyk_jpeg": control, "49_png_alpha": control, "54_wrong_extension": control}.items():
        error = (read_image(_read(case).images[0]).float() - expected).abs()
        assert error.mean() < 3, (case, float(error.mean()))


def test_exif_orientation_follows_the_size_in_the_json():
    stored, upright = (_read(c).images[0] for c in ("44_exif_rotated", "45_exif_rotated_json_upright"))
    assert (stored.upright, stored.height, stored.width) == (False, 160, 256)
    assert (upright.upright, upright.height, upright.width) == (True, 256, 160)
    turned = read_image(upright)
    assert torch.equal(turned, read_image(upright.path))  # a bare path is read upright
    assert torch.equal(turned, read_image(upright.path, upright=False).flip(1).transpose(1, 2))  # orientation 6: a quarter turn clockwise


def test_clipped_object_has_the_visible_box_and_area():
    obj = _read("05_box_partly_outside").images[0].objects[0]
    assert obj.bbox_xyxy == (220, 220, 256, 256) and obj.area == 36 * 36
    assert object_mask(obj, 256, 256).sum() == 36 * 36


def test_categories_are_contiguous():
    gap, zero = _read("19_category_id_gap"), _read("21_category_id_zero")
    assert [(c.id, c.index) for c in gap.categories] == [(1, 0), (90, 1)]
    assert zero.categories[0].id == 0 and zero.categories[0].index == 0


def test_huge_ids_are_exact():
    assert [o.id for o in _read("55_huge_ids").objects] == [2**53 + 1, 2**53]
