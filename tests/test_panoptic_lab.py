"""The panoptic explorer in JupyterLab in Chromium: pixels on the screen are those of the tensors that the exported functions give for the state of the controls."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lab import CHROMIUM, ask, opened, pixel, settled, shot, spot

from vfmkd_nb.core.panoptic_scenes import PANOPTIC_CATEGORIES
from vfmkd_nb.core.plots import heatmap
from vfmkd_nb.panoptic.coco import segment_colours
from vfmkd_nb.panoptic.merge import MergeOptions, find_peaks, panoptic_segments

MAKE = """
import torch
from vfmkd_nb.core.panoptic_scenes import PANOPTIC_CATEGORIES, make_panoptic_scene
from vfmkd_nb.panoptic.model import PanopticNet
torch.manual_seed(0); torch.set_num_threads(1)
net = PanopticNet(5)
torch.nn.init.normal_(net.head.heat.weight, std=.5)
images = [torch.from_numpy(make_panoptic_scene(k, 64).image).permute(2, 0, 1) / 255 for k in (1, 2)]
with torch.no_grad():
    for _ in range(20): net(torch.stack(images))
net.eval()
"""
SHOW = """
from vfmkd_nb.panoptic.merge import MergeOptions
from vfmkd_nb.panoptic.widget import PanopticExplorer
e = PanopticExplorer(net, [*images, images[0][:, :50]], PANOPTIC_CATEGORIES, ["one", "two", "odd"], options=MergeOptions(.08, .5, 0.))
e"""
PEAKS, CENTRES, COSINE, SEGMENTS = 0, 1, 2, 3  # panels of the chosen scale; those of the other follow


def expected(net, image, scale: float, options: MergeOptions, point=(.5, .5)) -> dict[int, np.ndarray]:
    """Panels (h, w, 3) from the network and the merge alone, without the widget's code."""
    with torch.no_grad():
        maps = net(image[None], scale)
    unit, n = F.normalize(maps.pixels[0], dim=0), maps.heat.shape[-1]
    row, column = int(point[1] * n), int(point[0] * n)
    cosine = (unit * unit[:, row, column, None, None]).sum(0)
    return {CENTRES: heatmap(maps.heat[0].sigmoid().amax(0).numpy(), 0, 1), COSINE: heatmap(cosine.numpy(), -1, 1, "seismic"),
            SEGMENTS: segment_colours(*panoptic_segments(net, maps, 0, (64, 64), PANOPTIC_CATEGORIES, options), PANOPTIC_CATEGORIES)}


def shows(page, net, image, options: MergeOptions, scale=1.0, point=None) -> None:
    """A grid of places of all panels of both scales has its colour; the cross at the chosen pixel is left out."""
    page.mouse.move(2, 2)  # the pointer draws a cross on the other panels
    settled(page)
    for first, s in ((0, scale), (4, 1.5 - scale)):
        for panel, want in expected(net, image, s, options, point or (.5, .5)).items():
            n = len(want)
            for i in range(1, n, max(1, n // 6)):
                for j in range(0, n, max(1, n // 5)):
                    x, y = (j + .5) / n, (i + .5) / n
                    if point and (abs(x - point[0]) < .06 or abs(y - point[1]) < .06):
                        continue
                    got = pixel(page, first + panel, x, y)
                    assert np.abs(np.subtract(got, want[i, j].astype(int))).max() <= 3, (first + panel, i, j, got, want[i, j])


@pytest.mark.slow
@pytest.mark.gui
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_the_screen_shows_what_the_functions_give(tmp_path):
    here = {}
    exec(MAKE, here)
    net, (one, two) = here["net"], here["images"]
    with opened(tmp_path, [MAKE, SHOW], limit=300) as (page, outside):
        shows(page, net, one, MergeOptions(.08, .5, 0.))
        text = page.locator(".jp-OutputArea .widget-html").first.inner_text()

        page.locator(".jp-OutputArea .noUi-handle").first.focus()  # the score threshold, by keyboard: 0.08 → 0.12
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        options = MergeOptions(.12, .5, 0.)
        shows(page, net, one, options)
        with torch.no_grad():
            peaks = [len(find_peaks(net(one[None], s).heat[0], threshold=.12)[0]) for s in (1.0, .5)]
        said = page.locator(".jp-OutputArea .widget-html").first.inner_text()
        assert said != text and all(f"scale {s:g}: {n} peaks" in said for s, n in zip((1.0, .5), peaks))
        assert json.loads(ask(page, "print(len(e.canvas.boxes))")) == sum(peaks)

        page.mouse.click(*spot(page, COSINE, .3, .7))  # the pixel to compare with
        settled(page)
        x, y = json.loads(ask(page, "import json; print(json.dumps(e.canvas.point))"))
        assert abs(x - 19.2) < 1.5 and abs(y - 44.8) < 1.5
        shows(page, net, one, options, point=(x / 64, y / 64))

        page.locator(".jp-OutputArea select").nth(1).select_option(label="0.5")  # the low path first
        shows(page, net, one, options, .5, point=(x / 64, y / 64))
        box = json.loads(ask(page, "print(json.dumps(e.canvas.boxes[0]['box']))"))  # the best peak of the low path: its mask
        page.mouse.click(*spot(page, PEAKS, (box[0] + box[2]) / 128, (box[1] + box[3]) / 128))
        settled(page)
        chosen = int(ask(page, "print(e.canvas.selected)"))
        assert chosen >= 0
        with torch.no_grad():
            maps = net(one[None], .5)
            _, classes, cells = find_peaks(maps.heat[0], threshold=.12)
            mask = F.interpolate(net.segments(maps, torch.zeros(1, dtype=torch.long), classes[chosen:chosen + 1], cells[chosen:chosen + 1])[0][None], size=(64, 64), mode="bilinear", align_corners=False)[0, 0].sigmoid()
        shown = ask(page, "l = e.canvas.content['peaks at scale 0.5'][1]; print(l.name, float(l.values.sum()))")
        assert shown.startswith("mask of the peak") and abs(float(shown.split()[-1]) - float(mask.sum())) < .1
        shot(page, tmp_path, "panoptic_widget")

        page.locator(".jp-OutputArea select").first.select_option(label="two")
        shows(page, net, two, options, .5, point=(x / 64, y / 64))
        page.locator(".jp-OutputArea select").first.select_option(label="odd")  # 50×64 pixels: said, and the last pictures stay
        settled(page)
        assert "sees 50×64 pixels" in page.locator(".vfmkd-alert").inner_text() or "sees 64×50 pixels" in page.locator(".vfmkd-alert").inner_text()
        shows(page, net, two, options, .5, point=(x / 64, y / 64))
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
