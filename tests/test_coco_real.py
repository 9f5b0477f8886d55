"""The real data sets: counts as their READMEs state, masks as pycocotools draws them, no picture in two splits."""
import itertools

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from vfmkd_nb.core.coco import doctor, find_split, object_mask, read_image, read_split, refuse_leakage

# (set, kind, split): images, objects, most objects in one image
COUNTS = {
    ("bsds500", "instances", "train"): (60, 964, 45),
    ("bsds500", "instances", "val"): (30, 542, 58),
    ("bsds500", "instances", "test"): (30, 561, 49),
    ("coco_small", "instances", "train"): (98, 791, 42),
    ("coco_small", "instances", "val"): (85, 588, 23),
    ("deeppcb", "boxes", "train"): (120, 811, 12),
    ("deeppcb", "boxes", "val"): (60, 369, 10),
    ("deeppcb", "instances_derived", "train"): (120, 811, 12),
    ("deeppcb", "instances_derived", "val"): (60, 369, 10),
    ("pcb_photo_defects", "instances", "train"): (128, 326, 11),
    ("pcb_photo_defects", "instances", "val"): (33, 79, 10),
    ("dsb2018_nuclei", "instances", "train"): (94, 4580, 183),
    ("dsb2018_nuclei", "instances", "val"): (39, 2525, 375),
}


def _folder(real_data, name):
    if not (real_data / name).is_dir():
        pytest.skip(f"no {real_data / name}")
    return real_data / name


@pytest.mark.parametrize(("name", "kind", "split"), COUNTS)
def test_counts(real_data, name, kind, split):
    data = read_split(_folder(real_data, name), split, kind, strict=True)
    assert (len(data), len(list(data.objects)), max(len(r.objects) for r in data.images)) == COUNTS[name, kind, split]
    assert data.summary()["boxes_only"] == (len(list(data.objects)) if kind == "boxes" else 0)


def _reference_mask(seg, h: int, w: int) -> torch.Tensor:
    """The mask as pycocotools makes it from the segmentation as written."""
    rle = coco_mask.merge(coco_mask.frPyObjects(seg, h, w)) if isinstance(seg, list) else coco_mask.frPyObjects(seg, h, w) if isinstance(seg["counts"], list) else seg
    return torch.from_numpy(np.asarray(coco_mask.decode([rle])[..., 0]).astype(bool))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools.decode
@pytest.mark.parametrize("name", ["bsds500", "coco_small", "pcb_photo_defects", "dsb2018_nuclei"])
def test_masks_equal_pycocotools(real_data, name):
    data = read_split(_folder(real_data, name), "val")
    for record in data.images:
        for obj in record.objects:
            mask = object_mask(obj, record.height, record.width)
            assert torch.equal(mask, _reference_mask(obj.segmentation, record.height, record.width)), obj.id
            assert mask.any()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "split"), [k for k in COUNTS if k[1] != "boxes"])
def test_doctor_finds_nothing_lost(real_data, name, kind, split):
    """Every picture is decoded; only crowds are noted."""
    table = doctor(*find_split(_folder(real_data, name), split, kind))
    assert set(table.outcome) <= {"noted"}, table.to_string()


def test_pictures_have_the_size_of_their_records(real_data):
    for name in ("bsds500", "coco_small", "deeppcb", "pcb_photo_defects", "dsb2018_nuclei"):
        for record in read_split(_folder(real_data, name), "val", "boxes" if name == "deeppcb" else "instances").images[:5]:
            assert read_image(record).shape == (3, record.height, record.width)


@pytest.mark.parametrize("name", ["bsds500", "coco_small", "deeppcb", "pcb_photo_defects", "dsb2018_nuclei"])
def test_no_picture_is_in_two_splits(real_data, name):
    root, kind = _folder(real_data, name), "boxes" if name == "deeppcb" else "instances"
    splits = [read_split(root, s, k) for n, k, s in COUNTS if (n, k) == (name, kind)]
    for train, val in itertools.combinations(splits, 2):
        refuse_leakage(train, val)
