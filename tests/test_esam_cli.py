"""`vfmkd predict esam`: masks for boxes, and one sentence for each mistake."""
import json

import pytest
from PIL import Image

from vfmkd_nb.core.cli import main
from vfmkd_nb.core.scenes import make_scene


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    scene = make_scene(1, 96)
    Image.fromarray(scene.image).save(tmp_path / "images" / "a.png")
    coco = {"images": [{"id": 7, "file_name": "a.png", "height": 96, "width": 96}], "categories": [{"id": 3, "name": "part"}],
            "annotations": [{"id": i + 1, "image_id": 7, "category_id": 3, "bbox": list(o.bbox_xywh)} for i, o in enumerate(scene.objects)]}
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    return tmp_path


def predict(folder, *changes) -> int:
    options = {"--checkpoint": "random:0:tiny", "--images": str(folder / "images"), "--boxes": str(folder / "boxes.json"), "--out": str(folder / "out.json"), **dict(zip(changes[::2], changes[1::2]))}
    return main(["predict", "esam", *(x for pair in options.items() for x in pair)])


def test_results_are_coco(folder, capsys):
    assert predict(folder) == 0
    results = json.loads((folder / "out.json").read_text())
    assert {r["image_id"] for r in results} == {7} and {r["category_id"] for r in results} == {3}
    assert all(r["segmentation"]["size"] == [96, 96] and isinstance(r["segmentation"]["counts"], str) for r in results)
    assert capsys.readouterr().out.strip().endswith("out.json")


@pytest.mark.parametrize("change, said", [
    (("--checkpoint", "nothing.pt"), "is no variant and no file"),
    (("--images", "/nowhere"), "does not exist"),
    (("--boxes", "/nowhere.json"), "does not exist"),
    (("--box-format", "normalized"), "look like pixels"),
])
def test_a_mistake_is_one_sentence(folder, capsys, change, said):
    assert predict(folder, *change) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("vfmkd: ") and said in error[-1], error
    assert not (folder / "out.json").exists()


def test_own_files_are_always_recognised(tmp_path):
    """The keys of a safetensors header come in any order, so that the mark of our format may stand far from its beginning."""
    from vfmkd_nb.esam.promptable import make_variant, read_model, save_model

    net = make_variant("tiny")
    for i in range(12):
        assert read_model(save_model(net, tmp_path / f"{i}.safetensors")).config == net.config
