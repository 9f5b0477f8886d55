"""The canvas that every widget uses, in JupyterLab in Chromium: what mouse and keyboard do to boxes, zoom, pixels and values, with the kernel asked what it knows."""
import json
import re

import pytest
from lab import CHROMIUM, ask, opened, pixel, settled, shot, spot

CELL = """
import numpy as np, pandas as pd, traitlets
from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.widgets import Canvas, Explorer, Layer, ObjectTable, boxes_of, slider, tint

class Square(Explorer):
    report = "edge"
    def __init__(self):
        self.photo = Layer("photo", np.full((40, 80, 3), (200, 30, 30), np.uint8))
        self.table = ObjectTable()
        super().__init__({"size": slider(0, 40, 10, text="size")}, Canvas(drawing="add", width=700), [self.table])
        traitlets.link((self.table, "selected"), (self.canvas, "selected"))
        self.canvas.boxes = [{"box": [10, 10, 20, 20], "role": "target", "edit": True}, {"box": [50, 10, 70, 30], "role": "student", "edit": True}]
        self.table.show(pd.DataFrame({"object": ["b", "a"], "score": [.25, .75]}))
        self.refresh()
    def update(self, changed):
        n = self.controls["size"].value
        if n == 0: raise BadInput("a square of side 0 cannot be shown.")
        values = np.zeros((40, 80)); values[:n, :n] = 1
        self.canvas.show({"photo": [self.photo], "square": [self.photo, Layer("square", tint(values, (0, 0, 255), 1.), values)]}, (40, 80))
        return f"{n * n} pixels, {len(boxes_of(self.canvas))} boxes"
    def parameters(self): return {"kernel": self.controls["size"].value}

e = Square()
e"""
boxes = lambda page: json.loads(ask(page, "import json; print(json.dumps([b['box'] for b in e.canvas.boxes]))"))


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    settled(page)


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_canvas_in_jupyterlab(tmp_path):
    with opened(tmp_path, [CELL]) as (page, outside):
        settled(page)
        # pictures: the layer lies where its values are, and a slider moves it
        assert pixel(page, 1, 5 / 80, 5 / 40) == (0, 0, 255) and pixel(page, 0, 5 / 80, 5 / 40)[0] > 150 and pixel(page, 1, 15.5 / 80, 5 / 40)[0] > 150
        page.locator(".noUi-handle").first.focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        settled(page)
        side = int(ask(page, "print(e.controls['size'].value)"))
        assert side > 10 and pixel(page, 1, (side - 1) / 80, 5 / 40) == (0, 0, 255) and pixel(page, 1, (side + 1.5) / 80, 35 / 40)[0] > 150
        # values under the pointer, the same in both panels
        page.mouse.move(*spot(page, 0, (side - .5) / 80, 1.5 / 40))
        assert re.search(r"x \d+\.\d y 1\.\d · square 1$", page.locator(".vfmkd-status").inner_text())
        # a new box with the mouse
        page.mouse.move(*spot(page, 1, 30 / 80, 5 / 40)); page.mouse.down(); page.mouse.move(*spot(page, 1, 42 / 80, 25 / 40), steps=5); page.mouse.up()
        settled(page)
        new = boxes(page)[2]
        assert new == pytest.approx([30, 5, 42, 25], abs=.6) and "3 boxes" in ask(page, "print(e.text)")
        # moved by dragging inside, resized by dragging its right side
        page.mouse.move(*spot(page, 1, 36 / 80, 15 / 40)); page.mouse.down(); page.mouse.move(*spot(page, 1, 31 / 80, 18 / 40), steps=5); page.mouse.up()
        settled(page)
        assert boxes(page)[2] == pytest.approx([25, 8, 37, 28], abs=.8)
        page.mouse.move(*spot(page, 1, 37 / 80, 18 / 40)); page.mouse.down(); page.mouse.move(*spot(page, 1, 45 / 80, 18 / 40), steps=5); page.mouse.up()
        settled(page)
        assert boxes(page)[2] == pytest.approx([25, 8, 45, 28], abs=1)
        # the keyboard alone: choose, move, resize, remove
        was = boxes(page)[0]
        press(page, "]")
        assert ask(page, "print(e.canvas.selected, e.table.selected)") == "0 0"
        press(page, "Alt+ArrowRight", "Alt+ArrowDown", "Shift+Alt+ArrowRight")
        assert boxes(page)[0] == [was[0] + 1, was[1] + 1, was[2] + 2, was[3] + 1]
        press(page, "Delete")
        assert len(boxes(page)) == 2 and boxes(page)[0] == [50, 10, 70, 30]
        # zoom: the same pixel, larger, in both panels, and back
        press(page, "+", "+", "+")
        assert float(ask(page, "print(e.canvas.zoom[0])")) == pytest.approx(1.25**3)
        press(page, "0")
        assert ask(page, "print(e.canvas.zoom)") == "[1, 0.5, 0.5]"
        # the table: sorted by a click, a row chosen is the box chosen
        page.locator(".vfmkd-rows th button", has_text="score").click()
        page.locator(".vfmkd-rows th button", has_text="score").click()
        assert page.locator(".vfmkd-rows tbody tr td:first-child").all_inner_texts() == ["a", "b"]
        page.locator(".vfmkd-rows tbody tr").first.click()
        settled(page)
        assert ask(page, "print(e.canvas.selected)") == "1"
        # opacity without Python; a wrong setting is a sentence and the pictures stay; "use these values" gives the parameters
        page.locator(".vfmkd-bar input").fill("0")
        assert pixel(page, 1, 5 / 80, 5 / 40)[0] > 150
        page.locator(".vfmkd-bar input").fill("1")
        shown = pixel(page, 1, 5 / 80, 5 / 40)
        ask(page, "e.controls['size'].value = 0")
        settled(page)
        assert page.locator(".vfmkd-alert").inner_text() == "a square of side 0 cannot be shown." and pixel(page, 1, 5 / 80, 5 / 40) == shown
        ask(page, "e.controls['size'].value = 7")
        settled(page)
        assert page.locator(".vfmkd-alert").inner_text() == ""
        page.get_by_role("button", name="Use these values").click()
        settled(page)
        assert "kernel = 7" in page.locator("textarea").input_value() and "vfmkd report edge --config" in page.locator("textarea").input_value()
        shot(page, tmp_path, "canvas")
        # a second view, opened after the first was told only what changed, asks for the rest
        page.evaluate("""async () => { const { commands, shell } = window.jupyterapp; await commands.execute('notebook:insert-cell-below');
          shell.currentWidget.content.activeCell.model.sharedModel.setSource('e.canvas'); await commands.execute('notebook:run-cell'); }""")
        page.locator(".vfmkd-grid[data-drawn]").nth(1).wait_for(timeout=60_000)
        settled(page)
        assert pixel(page, 3, 5 / 80, 5 / 40) == pixel(page, 1, 5 / 80, 5 / 40) == (0, 0, 255) and pixel(page, 2, 70 / 80, 35 / 40) == pixel(page, 0, 70 / 80, 35 / 40)
        # dark theme: text stays legible on its ground
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        page.wait_for_timeout(1500)
        ink, ground = (page.locator(where).first.evaluate(f"e => getComputedStyle(e).{what}") for where, what in ((".vfmkd-help", "color"), (".jp-Notebook", "backgroundColor")))
        bright = lambda c: sum(map(float, re.findall(r"[\d.]+", c)[:3]))
        assert bright(ink) - bright(ground) > 250, (ink, ground)
        shot(page, tmp_path, "canvas_dark")
        assert not outside, outside[:3]
