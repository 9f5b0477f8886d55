"""Every chapter's widget in JupyterLab in Chromium: it appears, a control makes the right change, errors are absent, and nothing asks an outside host."""
from pathlib import Path

import pytest
from lab import CHROMIUM, ask, opened, pixel, settled

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
        page.screenshot(path=tmp_path / "widget.png")
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"


BOXES = """
from vfmkd_nb.boxes.data import BoxConfig
from vfmkd_nb.boxes.train import train_boxes
from vfmkd_nb.boxes.widget import explore
from vfmkd_nb.core.features import FeatureStore
result = train_boxes(BoxConfig(**OPTIONS), run_dir="FOLDER/run", store=FeatureStore("FOLDER/store"))
explorer = explore(result)
explorer.panel"""


def _near(page, colour, x: float, y: float) -> float:
    """Distance (mean over channels) of a colour to the nearest pixel within 2 px of a place of the canvas."""
    data = page.evaluate("([x, y]) => [...document.querySelector('canvas.vfmkd-boxes').getContext('2d').getImageData(x - 2, y - 2, 5, 5).data]", [round(x), round(y)])
    return min(sum(abs(data[i + k] - colour[k]) for k in range(3)) / 3 for i in range(0, len(data), 4))


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_box_explorer_in_jupyterlab(tmp_path, monkeypatch):
    """What the panel shows are the numbers and boxes of the exported functions: at first, after a drag, after the noise slider; the list is sorted; features are PCA colours; a lost picture ends in a sentence."""
    import numpy as np
    import torch

    from vfmkd_nb.boxes.data import BoxConfig, coarse_boxes
    from vfmkd_nb.boxes.train import train_boxes
    from vfmkd_nb.boxes.widget import explore, ranking, refine
    from vfmkd_nb.core.features import FeatureStore
    from vfmkd_nb.core.plots import COLOURS, enlarge
    from vfmkd_nb.core.teachers import pca_colours

    monkeypatch.setenv("VFMKD_HOME", str(Path(__file__).parents[1]))  # the kernel works in a folder of its own
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))
    options = {"image_size": 128, "train_images": 8, "val_images": 3, "epochs": 3, "batch_size": 4, "warmup_steps": 2, "passport_samples": 0}
    result = train_boxes(BoxConfig(**options), run_dir=tmp_path / "run", store=FeatureStore(tmp_path / "store"))
    here = explore(result)
    sample, model, scale = here.sample, result.task.model, 512 / 128

    def said(coarse) -> str:
        found = refine(model, sample["features"], coarse, sample["true"])
        return "box 0: IoU " + " → ".join(f"{float(v):.3f}" for v in found.iou[:, 0]) + f", loss {float(found.loss[0, 0]):.3f} → {float(found.loss[-1, 0]):.3f}"

    def drawn(page, coarse) -> None:
        x1, y1, x2, y2 = (scale * refine(model, sample["features"], coarse, sample["true"]).path[-1, 0]).clamp(3, 508).tolist()
        sides = [((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2), (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)]
        assert sum(_near(page, COLOURS["student"], *p) < 40 for p in sides) >= 3  # one may lie under the coarse box

    def wait(page, text: str) -> None:
        page.wait_for_function("text => document.querySelector('.jp-OutputArea').innerText.includes(text)", arg=text, timeout=30_000)

    cell = BOXES.replace("OPTIONS", repr(options)).replace("FOLDER", str(tmp_path))
    with opened(tmp_path, [cell]) as (page, outside):
        canvas = page.locator("canvas.vfmkd-boxes")
        canvas.wait_for(timeout=30_000)
        canvas.scroll_into_view_if_needed()
        wait(page, said(sample["coarse"]))
        drawn(page, sample["coarse"])
        place, box = canvas.bounding_box(), sample["coarse"][0]
        x, y = (round(place[k] + scale * float(c)) for k, c in (("x", (box[0] + box[2]) / 2), ("y", (box[1] + box[3]) / 2)))
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 6, y + 4)
        page.mouse.move(x + 12, y + 8)  # 3 and 2 pixels of the picture
        page.mouse.up()
        moved = sample["coarse"].clone()
        moved[0] += torch.tensor([3., 2, 3, 2])
        moved[0].clamp_(0, 128)
        wait(page, said(moved))
        drawn(page, moved)
        page.screenshot(path=tmp_path / "boxes.png")
        listed = [t.replace("\xa0", " ") for t in page.locator(".widget-select select option").all_text_contents()]  # ipywidgets writes spaces as no-break spaces
        expected = ranking(result.per_box)
        assert [t.split("loss ")[1] for t in listed] == [f"{r['loss']:.3f}  {r['id']} #{r['object']}" for _, r in expected.iterrows()]
        assert sum(t.startswith("worse") for t in listed) == int(expected["worse"].sum())
        page.locator(".jp-OutputArea .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(500)
        noise = float(page.locator(".widget-readout").first.inner_text())
        assert noise > .25
        wait(page, said(coarse_boxes(sample["true"], sample["frame"], noise, torch.Generator().manual_seed(0))))
        page.locator(".widget-toggle-button", has_text="features").click()
        page.wait_for_timeout(1500)
        data = page.evaluate("() => [...document.querySelector('canvas.vfmkd-boxes').getContext('2d').getImageData(0, 0, 512, 512).data]")
        shown = np.array(data).reshape(512, 512, 4)[2::16, 2::16, :3]
        off = {name: np.abs(shown - enlarge(np.ascontiguousarray(p), (512, 512)).astype(int)[2::16, 2::16]).mean() for name, p in (("features", pca_colours(sample["features"])), ("photo", here.photo))}
        assert off["features"] < 20 and off["features"] < off["photo"] / 2, off
        page.screenshot(path=tmp_path / "boxes_features.png")
        result.val.data.images[1].path.unlink()
        page.locator(".widget-dropdown select").first.select_option(index=1)
        wait(page, f"{result.val.sample_id(1)} cannot be shown:")
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
