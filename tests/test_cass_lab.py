"""The CASS widget in JupyterLab in Chromium: boxes are drawn, dragged, moved by keys and removed, and the picture on the screen is each time the one that the exported functions give for these boxes and controls."""
import base64
import io
import os
import time

import numpy as np
import pytest
import torch
from lab import CHROMIUM, opened
from PIL import Image

from vfmkd_nb.cass.targets import soft_target_mask
from vfmkd_nb.cass.widget import View, read_boxes, view_picture
from vfmkd_nb.core.plots import enlarge, heatmap, jpeg_bytes

INPUT = """
import numpy as np, torch
image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
features = torch.randn(8, 12, 12, generator=torch.Generator().manual_seed(0))
"""
CELL = INPUT + """
from vfmkd_nb.cass.widget import BiasExplorer
torch.set_num_threads(1)
explorer = BiasExplorer(image, features, torch.tensor([[8., 8, 40, 40]]))
explorer.panel"""
SCREEN = """async () => {
  const bytes = new Uint8Array(await (await fetch(document.querySelector('.jp-OutputArea img.widget-image').src)).arrayBuffer());
  return btoa(String.fromCharCode(...bytes));
}"""


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


class Widget:
    """The widget as a reader has it, and what it should show."""
    def __init__(self, page):
        self.page, known = page, {}
        exec(INPUT, known)
        self.image, self.features = known["image"], known["features"]
        self.canvas, self.text = page.locator("canvas.cass-boxes"), page.locator(".jp-OutputArea textarea")

    @property
    def boxes(self) -> list[list[float]]:
        return read_boxes(self.text.input_value())

    def shows(self, boxes: list[list[float]], **view) -> np.ndarray:
        """Wait until the picture is that of these boxes and controls, to the pixel."""
        torch.set_num_threads(1)
        picture, found = view_picture(self.image, self.features, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), View(**view))
        want, end = decoded(jpeg_bytes(picture, 85)), time.monotonic() + 60
        while not np.array_equal(screen := decoded(base64.b64decode(self.page.evaluate(SCREEN))), want):
            assert time.monotonic() < end, f"the screen is not the picture of {boxes} under {view}: {np.abs(screen - want).mean() if screen.shape == want.shape else screen.shape}"
            self.page.wait_for_timeout(250)
        return screen

    def drag(self, start, end) -> None:
        """Press, move and release the mouse, in pixels of the picture (the canvas is 360 wide)."""
        self.canvas.scroll_into_view_if_needed()
        place = self.canvas.bounding_box()
        at = lambda p: (place["x"] + p[0] * 360 / 96, place["y"] + p[1] * 360 / 96)
        self.page.mouse.move(*at(start))
        self.page.mouse.down()
        self.page.mouse.move(*at(end), steps=4)
        self.page.mouse.up()

    def comes(self, boxes, within=.5) -> list[list[float]]:
        """Wait for these boxes, up to the mouse's accuracy; the boxes as they are."""
        end = time.monotonic() + 30
        while not (len(self.boxes) == len(boxes) and np.allclose(self.boxes, boxes, atol=within)):
            assert time.monotonic() < end, f"boxes are {self.boxes}, expected {boxes}"
            self.page.wait_for_timeout(200)
        return self.boxes

    def slide(self, k: int) -> None:
        """One step of the k-th slider, with the keyboard."""
        self.page.locator(".jp-OutputArea .noUi-handle").nth(k).focus()
        self.page.keyboard.press("ArrowRight")


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_the_screen_is_what_the_functions_give(tmp_path):
    with opened(tmp_path, [CELL]) as (page, outside):
        page.wait_for_selector(".jp-OutputArea img.widget-image", timeout=60_000)
        w = Widget(page)
        w.shows([[8, 8, 40, 40]])

        w.drag((50, 46), (86, 80))                                                     # draw
        boxes = w.comes([[8, 8, 40, 40], [50, 46, 86, 80]])
        screen = w.shows(boxes)
        target = soft_target_mask([torch.tensor(boxes)], (12, 12), (96, 96))[0]        # the first panel, from the exported target alone
        panel = heatmap(enlarge(target.view(12, 12).repeat_interleave(8, 0).repeat_interleave(8, 1).numpy(), (150, 150)), 0, 1, "magma").astype(int)
        assert np.abs(screen[16:166, :150] - panel).mean() < 12

        w.drag((60, 60), (50, 56))                                                     # move
        moved = w.comes([boxes[0], [boxes[1][0] - 10, boxes[1][1] - 4, boxes[1][2] - 10, boxes[1][3] - 4]])
        w.shows(moved)

        w.canvas.focus()                                                               # keys: move and resize the chosen box, a new one, and away with it
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
        a, b, c, d = moved[1]
        boxes = w.comes([moved[0], [a + 1, b, c + 1, d + 1]], within=.05)
        w.shows(boxes)
        page.keyboard.press("n")
        w.shows(w.comes([*boxes, [36, 36, 60, 60]], within=.05))
        page.keyboard.press("Delete")
        w.comes(boxes, within=.05)

        w.slide(1)
        w.shows(boxes, keep=.35)
        w.slide(0)
        w.shows(boxes, keep=.35, expansion=.4)
        w.slide(2)
        screen = w.shows(boxes, keep=.35, expansion=.4, patch=2)
        page.locator(".jp-OutputArea select").first.select_option("area")
        screen = w.shows(boxes, keep=.35, expansion=.4, patch=2, kinds=("area", "obn"))
        if shots := os.environ.get("VFMKD_SHOTS"):
            page.screenshot(path=f"{shots}/cass_widget.png")

        w.text.fill("1 2 3")                                                           # a mistake is said, and the view stays
        page.keyboard.press("Tab")
        page.get_by_text("line 1 is '1 2 3', expected four numbers x1 y1 x2 y2, not 3.").wait_for(timeout=30_000)
        assert np.array_equal(decoded(base64.b64decode(page.evaluate(SCREEN))), screen)
        w.text.fill("8 8 40 40\n40 40 90 90")
        page.keyboard.press("Tab")
        w.shows([[8, 8, 40, 40], [40, 40, 90, 90]], keep=.35, expansion=.4, patch=2, kinds=("area", "obn"))
        place = w.canvas.bounding_box()
        page.mouse.dblclick(place["x"] + 20 * 360 / 96, place["y"] + 20 * 360 / 96)     # a double click removes
        w.shows(w.comes([[40, 40, 90, 90]], within=.05), keep=.35, expansion=.4, patch=2, kinds=("area", "obn"))
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
