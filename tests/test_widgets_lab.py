"""Every chapter's widget in JupyterLab in Chromium: it appears, a control makes the right change, errors are absent, and nothing asks an outside host."""
from pathlib import Path

import pytest
from lab import CHROMIUM, ask, opened, pixel, settled, shot, spot

EDGE = """
import torch
from vfmkd_nb.edge.widget import MaskExplorer
from vfmkd_nb.edge.losses import mask_weights
image = torch.full((3, 64, 64), .5); target = torch.zeros(16, 16); target[4:12, 4] = target[4, 4:12] = 1
e = MaskExplorer([image], [target], [torch.randn(16, 16, generator=torch.Generator().manual_seed(1))], ["noise"])
e"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_edge_widget(tmp_path):
    """The weight on the screen is the loss's own, before and after the kernel is changed by keyboard."""
    with opened(tmp_path, [EDGE]) as (page, outside):
        settled(page)
        tinted = lambda i, j: pixel(page, 4, (j + .5) / 16, (i + .5) / 16)[2] > 170  # the band's blue over grey 128

        def agrees(kernel: int) -> None:
            weights = ask(page, f"print(''.join(str(int(v)) for v in mask_weights(target[None], {kernel}, 'band')[0].flatten().tolist()))")
            shown = "".join(str(int(tinted(i, j))) for i in range(16) for j in range(16))
            assert shown == weights and 0 < weights.count("1") < 256

        agrees(3)
        page.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")  # the keyboard alone must do
        settled(page)
        assert ask(page, "print(e.view.kernel_size)") == "5"
        agrees(5)
        assert "coverage" in page.locator(".jp-OutputArea .widget-html").first.inner_text()
        ask(page, "e.controls['epoch'].value = 2")
        settled(page)
        assert "mask off" in page.locator(".jp-OutputArea .widget-html").first.inner_text() and all(tinted(i, j) for i, j in ((0, 0), (15, 15)))
        shot(page, tmp_path, "edge_widget")
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"


BOXES = """
from vfmkd_nb.boxes.data import BoxConfig
from vfmkd_nb.boxes.train import train_boxes
from vfmkd_nb.boxes.widget import explore
from vfmkd_nb.core.features import FeatureStore
result = train_boxes(BoxConfig(**OPTIONS), run_dir="FOLDER/run", store=FeatureStore("FOLDER/store"))
e = explore(result)
e"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The project's home for a kernel that works in a folder of its own, with data of its own."""
    monkeypatch.setenv("VFMKD_HOME", str(Path(__file__).parents[1]))
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))


def said(page) -> str:
    """The line of text above the canvas."""
    return page.locator(".jp-OutputArea .widget-html-content").first.inner_text()


def clean(page, outside) -> None:
    """No error output, no request outside of the machine."""
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert not outside, f"asked for {outside[:3]}"


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_box_explorer_in_jupyterlab(tmp_path, beside):
    """What the panel shows are the numbers and boxes of the exported functions: at first, after a drag, after the noise slider; the table is sorted; features are PCA colours; a lost picture ends in a sentence."""
    import numpy as np
    import torch

    from vfmkd_nb.boxes.data import BoxConfig, coarse_boxes
    from vfmkd_nb.boxes.train import train_boxes
    from vfmkd_nb.boxes.widget import ranking, refine
    from vfmkd_nb.core.features import FeatureStore
    from vfmkd_nb.core.plots import COLOURS
    from vfmkd_nb.core.teachers import pca_colours

    options = {"image_size": 128, "train_images": 8, "val_images": 3, "epochs": 3, "batch_size": 4, "warmup_steps": 2, "passport_samples": 0}
    result = train_boxes(BoxConfig(**options), run_dir=tmp_path / "run", store=FeatureStore(tmp_path / "store"))
    sample, model = result.val.get(0, None), result.task.model

    def expected(coarse) -> str:
        found = refine(model, sample["features"], coarse, sample["true"])
        return "box 0: IoU " + " → ".join(f"{float(v):.3f}" for v in found.iou[:, 0]) + f", loss {float(found.loss[0, 0]):.3f} → {float(found.loss[-1, 0]):.3f}"

    def drawn(page, coarse) -> None:
        x1, y1, x2, y2 = refine(model, sample["features"], coarse, sample["true"]).path[-1, 0].clamp(1, 127).tolist()
        sides = [((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2), (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)]
        near = lambda x, y: min(sum(abs(a - b) for a, b in zip(pixel(page, 0, (x + dx) / 128, (y + dy) / 128), COLOURS["student"])) / 3 for dx in (-.5, 0, .5) for dy in (-.5, 0, .5))
        assert sum(near(*p) < 40 for p in sides) >= 3  # one may lie under the coarse box

    with opened(tmp_path, [BOXES.replace("OPTIONS", repr(options)).replace("FOLDER", str(tmp_path))]) as (page, outside):
        settled(page)
        assert said(page).startswith(expected(sample["coarse"]))
        drawn(page, sample["coarse"])
        box = sample["coarse"][0]
        x, y = spot(page, 0, float(box[0] + box[2]) / 256, float(box[1] + box[3]) / 256)
        wide = page.locator(".vfmkd-grid canvas").first.bounding_box()["width"] / 128
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 1.5 * wide, y + wide)
        page.mouse.move(x + 3 * wide, y + 2 * wide)  # 3 and 2 pixels of the picture
        page.mouse.up()
        settled(page)
        moved = torch.tensor(eval(ask(page, "print(e.coarse.tolist())")))
        test = sample["coarse"].clone()
        test[0] += torch.tensor([3., 2, 3, 2])
        assert torch.allclose(moved, test, atol=.2)
        assert said(page).startswith(expected(moved))
        drawn(page, moved)
        shot(page, tmp_path, "boxes_widget")
        rows, ranked = page.locator(".vfmkd-rows tbody tr").all_inner_texts(), ranking(result.per_box)
        assert [r.split("\t")[:2] for r in rows] == [[r["id"], str(r["object"])] for _, r in ranked.iterrows()]
        page.locator(".vfmkd-rows tbody tr").nth(1).click()
        settled(page)
        assert ask(page, "print(e.controls['image'].label, f'{float(e.refinement.loss[-1, e.chosen]):.3f}')") == f"{ranked['id'][1]} {ranked['loss'][1]:.3f}"
        ask(page, "with e.hold(): e.controls['image'].value = 0\ne.chosen = 0; e.refresh()")
        page.locator(".jp-OutputArea .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        settled(page)
        noise = float(ask(page, "print(e.controls['noise'].value)"))
        assert noise > .25
        assert said(page).startswith(expected(coarse_boxes(sample["true"], sample["frame"], noise, torch.Generator().manual_seed(0))))
        colours, spots = pca_colours(sample["features"]), [(.1, .15), (.5, .35), (.8, .75), (.35, .9)]
        h, w = colours.shape[:2]
        off = [np.abs(np.array(pixel(page, 1, fx, fy)) - colours[int(fy * h), int(fx * w)].astype(int)).mean() for fx, fy in spots]
        assert np.median(off) < 5, off
        result.val.data.images[1].path.unlink()
        page.locator(".widget-dropdown select").first.select_option(index=1)
        settled(page)
        assert page.locator(".vfmkd-alert").first.inner_text().startswith(f"{result.val.sample_id(1)} cannot be shown:")
        clean(page, outside)


PROMPTS = """
from vfmkd_nb.core.coco import read_split
from vfmkd_nb.core.scenes import embedded_scenes
from vfmkd_nb.esam.promptable import load_promptable
from vfmkd_nb.esam.widget import PromptExplorer
data = read_split(embedded_scenes(256, train=4, val=2), "val")
e = PromptExplorer(data.images, {"random": load_promptable("random:0:tiny"), "tiny": load_promptable("tiny")}, [c.name for c in data.categories])
e"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_prompt_explorer_in_jupyterlab(tmp_path, beside):
    """A box drawn with the mouse and moved with the keyboard is answered by the adapter's own masks, pixel by pixel; the noise slider changes the spread; a row of the table becomes the prompt; a narrow box gets a sentence."""
    import torch

    from vfmkd_nb.core.coco import read_split
    from vfmkd_nb.core.geometry import Frame
    from vfmkd_nb.core.images import read_image
    from vfmkd_nb.core.scenes import embedded_scenes
    from vfmkd_nb.esam.promptable import load_promptable
    from vfmkd_nb.esam.widget import answer

    record, tiny = read_split(embedded_scenes(256, train=4, val=2), "val").images[0], load_promptable("tiny")
    image = read_image(record)
    maps = tiny.encode(image[None])

    def agrees(page, box, noise) -> None:
        found = answer(tiny, maps, Frame.of(image), torch.tensor(box), noise)
        assert f"tiny: predicted IoU {float(found.iou[found.best]):.2f}, {int(found.masks[found.best].sum())} px, agreement under jitter {found.agreement:.2f}" in said(page)
        wrong, zoom, cx, cy = 0, *eval(ask(page, "print(e.canvas.zoom)"))
        for k in range(60):  # the spread's panel: a grey that grows with the share of jittered masks
            x, y = box[0] + (k % 10 + .5) * (box[2] - box[0]) / 10, box[1] + (k // 10 + .5) * (box[3] - box[1]) / 6
            left, top = (min(max(c * 256 - 128 / zoom, 0), 256 - 256 / zoom) for c in (cx, cy))
            light = max(pixel(page, 9, (int(x) + .5 - left) * zoom / 256, (int(y) + .5 - top) * zoom / 256))
            wrong += (light > 128) != (float(found.spread[int(y), int(x)]) > .35)
        assert wrong <= 6, wrong  # pixels on the outline, and under the box's own line

    with opened(tmp_path, [PROMPTS]) as (page, outside):
        settled(page)
        agrees(page, [float(v) for v in record.objects[0].bbox_xyxy], .1)
        ask(page, "e.canvas.zoom = [1.0, .5, .5]")
        settled(page)
        page.mouse.move(*spot(page, 5, .2, .55))
        page.mouse.down()
        page.mouse.move(*spot(page, 5, .3, .6))
        page.mouse.move(*spot(page, 5, .45, .8))
        page.mouse.up()
        settled(page)
        box = eval(ask(page, "print(e.canvas.boxes[-1]['box'])"))
        assert all(abs(a - 256 * b) < 1.5 for a, b in zip(box, (.2, .55, .45, .8)))
        agrees(page, box, .1)
        page.keyboard.press("ArrowRight")
        settled(page)
        moved = eval(ask(page, "print(e.canvas.boxes[-1]['box'])"))
        assert [round(a - b, 1) for a, b in zip(moved, box)] == [4, 0, 4, 0]
        agrees(page, moved, .1)
        shot(page, tmp_path, "esam_widget")
        page.locator(".jp-OutputArea .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        settled(page)
        agrees(page, moved, .15)
        page.locator(".vfmkd-rows tbody tr").nth(2).click()
        settled(page)
        assert eval(ask(page, "print(e.canvas.boxes[-1]['box'])")) == [float(v) for v in record.objects[2].bbox_xyxy]
        agrees(page, [float(v) for v in record.objects[2].bbox_xyxy], .15)
        shot(page, tmp_path, "esam_widget_row")
        ask(page, "e.canvas.boxes = [{'box': [10., 10., 11.5, 40.], 'role': 'target', 'edit': True}]")
        settled(page)
        assert "narrower than two pixels" in page.locator(".vfmkd-alert").first.inner_text()
        clean(page, outside)
