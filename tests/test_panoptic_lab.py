"""The panoptic explorer in JupyterLab in Chromium: the pictures on the screen are, byte for byte, what the exported functions give for the state of the controls."""
import base64

import pytest
import torch
from lab import CHROMIUM, opened

from vfmkd_nb.core.panoptic_scenes import PANOPTIC_CATEGORIES
from vfmkd_nb.core.plots import jpeg_bytes
from vfmkd_nb.panoptic.widget import View, alignment_picture, view_picture

MAKE = """
import torch
from vfmkd_nb.core.panoptic_scenes import PANOPTIC_CATEGORIES, make_panoptic_scene
from vfmkd_nb.panoptic.model import PanopticNet
from vfmkd_nb.panoptic.resolution import SuperResolution
torch.manual_seed(0); torch.set_num_threads(1)
net, branch = PanopticNet(5).eval(), SuperResolution(48, 48, .5).eval()
torch.nn.init.normal_(net.head.heat.weight, std=1.)
images = [torch.from_numpy(make_panoptic_scene(k, 64).image).permute(2, 0, 1) / 255 for k in (1, 2)]
"""
SHOW = """
import pandas as pd
from vfmkd_nb.panoptic.widget import PanopticExplorer
explorer = PanopticExplorer(net, [*images, images[0][:, :50]], PANOPTIC_CATEGORIES, ["one", "two", "odd"], branch=branch, fusion=pd.DataFrame({"P2": [.25, .3], "P3": [.25, .2]}, index=[1, 2]))
explorer.panel"""
BYTES = """async k => { const i = document.querySelectorAll('.jp-OutputArea .widget-image')[k]; const b = new Uint8Array(await (await fetch(i.src)).arrayBuffer());
  let s = ''; for (const x of b) s += String.fromCharCode(x); return btoa(s); }"""
SAID = "() => [...document.querySelectorAll('.jp-OutputArea .widget-html-content')].map(e => e.innerText).join(' ')"


@pytest.mark.slow
@pytest.mark.gui
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_the_screen_shows_what_the_functions_give(tmp_path):
    here = {}
    exec(MAKE, here)
    net, branch, images = here["net"], here["branch"], here["images"]
    with torch.no_grad():
        maps = [{s: net(x[None], s) for s in (1.0, 0.5)} for x in images]

    def wanted(image: int, view: View) -> tuple[bytes, str]:
        picture, text = view_picture(net, maps[image], images[image], PANOPTIC_CATEGORIES, view)
        return jpeg_bytes(picture, 85), text.split("<br>")[0]

    def shows(page, k: int, expected: bytes, seconds: int = 30) -> None:
        for _ in range(2 * seconds):
            if base64.b64decode(page.evaluate(BYTES, k)) == expected:
                return
            page.wait_for_timeout(500)
        raise AssertionError(f"picture {k} is not what the functions give; the screen says: {page.evaluate(SAID)}")

    with opened(tmp_path, [MAKE, SHOW], limit=300) as (page, outside):
        page.wait_for_selector(".jp-OutputArea .widget-image", timeout=60_000)
        first, text = wanted(0, View())
        shows(page, 0, first)
        assert text in page.evaluate(SAID)
        shows(page, 1, jpeg_bytes(alignment_picture(net, branch, images[0], 0.5, 0.0625)[0]))

        page.locator(".jp-OutputArea .noUi-handle").first.focus()  # the score threshold, by keyboard: 0.3 → 0.4
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        view = View(score_threshold=0.4)
        assert wanted(0, view)[0] != first
        shows(page, 0, wanted(0, view)[0])
        assert wanted(0, view)[1] in page.evaluate(SAID)

        page.locator(".jp-OutputArea select").first.select_option(label="two")  # another image: its picture, and its alignment
        shows(page, 0, wanted(1, view)[0])
        shows(page, 1, jpeg_bytes(alignment_picture(net, branch, images[1], 0.5, 0.0625)[0]))

        page.locator(".jp-OutputArea select").nth(1).select_option(label="0.5")  # the low path first
        shows(page, 0, wanted(1, View(input_scale=0.5, score_threshold=0.4))[0])

        page.locator(".jp-OutputArea select").first.select_option(label="odd")  # 50×64 pixels: said, and the last picture stays
        page.wait_for_function(f"() => ({SAID})().includes('sees 50×64 pixels')", timeout=30_000)
        shows(page, 0, wanted(1, View(input_scale=0.5, score_threshold=0.4))[0])
        page.screenshot(path=tmp_path / "widget.png")
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
