"""The box explorer's canvas in a real browser: dragging inside moves the box, dragging an edge moves that edge, clicking another object selects it."""
import base64
import json
import os
import shutil

import pytest

from vfmkd_nb.boxes.widget import BoxCanvas
from vfmkd_nb.core.plots import jpeg_bytes
from vfmkd_nb.core.scenes import make_scene

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = [pytest.mark.gui, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

PAGE = """<!doctype html><meta charset="utf-8"><div id="here"></div><script type="module">
const code = %s, state = %s, listeners = {};
state.photo = Uint8Array.from(atob(state.photo), (c) => c.charCodeAt(0));
const model = {get: (k) => state[k], set: (k, v) => { state[k] = v; (listeners[`change:${k}`] || []).forEach((f) => f()); },
               on: (k, f) => { (listeners[k] ||= []).push(f); }, save_changes: () => { window.saved = (window.saved || 0) + 1; }};
const module = await import(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
module.default.render({model, el: document.getElementById("here")});
window.state = state; window.model = model; window.ready = true;
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with the canvas at twice the image's size: two objects, the first selected with its coarse box."""
    from playwright.sync_api import sync_playwright
    state = {"photo": base64.b64encode(jpeg_bytes(make_scene(3, 256).image)).decode(), "frame": [256, 256], "width": 512, "selected": 0,
             "true": [[40, 40, 100, 100], [150, 150, 220, 200]], "path": [[[50, 50, 110, 110], [150, 150, 220, 200]], [[41, 41, 101, 101], [150, 150, 220, 200]]],
             "coarse": [50, 50, 110, 110], "colours": BoxCanvas().colours}
    file = tmp_path_factory.mktemp("canvas") / "page.html"
    file.write_text(PAGE % (json.dumps(BoxCanvas._esm if isinstance(BoxCanvas._esm, str) else str(BoxCanvas._esm)), json.dumps(state)))
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 700, "height": 640})
        page.goto(file.as_uri())
        page.wait_for_function("window.ready && document.querySelector('canvas').width === 512", timeout=30_000)
        yield page
        if shots := os.environ.get("VFMKD_SHOTS"):
            page.screenshot(path=f"{shots}/box_canvas.png")
        browser.close()


def drag(page, start, end):
    """Drag from one place of the image to another, in its pixels; the coarse box afterwards."""
    place = page.evaluate("(() => { const r = document.querySelector('canvas').getBoundingClientRect(); return [r.left, r.top]; })()")
    at = lambda p: (place[0] + 2 * p[0], place[1] + 2 * p[1])
    page.mouse.move(*at(start))
    page.mouse.down()
    page.mouse.move(*at([(a + b) / 2 for a, b in zip(start, end)]))
    page.mouse.move(*at(end))
    page.mouse.up()
    return page.evaluate("window.state.coarse")


def test_dragging(page):
    """Inside: the whole box; near an edge: that edge alone; never outside of the image; each move reaches Python."""
    assert drag(page, (80, 80), (90, 75)) == pytest.approx([60, 45, 120, 105], abs=.6)
    assert drag(page, (120, 75), (130, 75)) == pytest.approx([60, 45, 130, 105], abs=.6)
    assert drag(page, (60, 45), (50, 40)) == pytest.approx([50, 40, 130, 105], abs=.6)
    assert drag(page, (130, 70), (300, 70))[2] == pytest.approx(256, abs=.6)
    assert page.evaluate("window.saved") >= 8


def test_selecting_and_drawing(page):
    """A click on another object selects it; the picture is not empty and follows the path."""
    page.evaluate("window.model.set('coarse', [50, 50, 110, 110])")
    drag(page, (180, 175), (180, 175))
    assert page.evaluate("window.state.selected") == 1
    pixels = "Array.from(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 512, 512).data).reduce((a, b) => a + b, 0)"
    before = page.evaluate(pixels)
    page.evaluate("window.model.set('path', [[[50, 50, 110, 110], [150, 150, 220, 200]], [[10, 10, 240, 240], [20, 20, 200, 230]]])")
    assert before > 1e6 and page.evaluate(pixels) != before
