"""The CASS widget in JupyterLab in Chromium: boxes are drawn, dragged, moved by keys and removed, and every pixel that is looked at has the colour of the tensor that the exported functions give for these boxes and controls."""
import json
import time

import numpy as np
import pytest
import torch
from lab import CHROMIUM, ask, opened, pixel, settled, shot, spot

from vfmkd_nb.cass.losses import cass_loss
from vfmkd_nb.cass.pruner import PatchPruner, keep_patches
from vfmkd_nb.cass.targets import soft_target_mask, valid_cells
from vfmkd_nb.core.data import torch_rng
from vfmkd_nb.core.plots import heatmap

INPUT = """
import numpy as np, torch
image = np.full((96, 96, 3), 200, np.uint8)
features = torch.randn(8, 12, 12, generator=torch.Generator().manual_seed(0))
"""
CELL = INPUT + """
from vfmkd_nb.cass.widget import BiasExplorer
torch.set_num_threads(1)
e = BiasExplorer(image, features, torch.tensor([[8., 8, 40, 40]]))
e"""
TARGET, SCORES, KEPT, GRADIENT = 0, 1, 4, 5  # panels of the kind at the left


def boxes(page) -> list[list[float]]:
    return json.loads(ask(page, "import json; print(json.dumps([b['box'] for b in e.canvas.boxes]))"))


def comes(page, count: int) -> None:
    """Wait until the kernel knows so many boxes: a slow page sends them late."""
    end = time.monotonic() + 60
    while len(boxes(page)) != count:
        assert time.monotonic() < end, f"{len(boxes(page))} boxes, expected {count}"
        page.wait_for_timeout(200)
    settled(page)


def expected(of: list[list[float]], kind="dset_focal", expansion=.3, keep=.3, patch=1, steps=20) -> dict[int, np.ndarray]:
    """Panels (h, w, 3) of the left kind, from targets, losses and pruner alone, without the widget's code."""
    known = {}
    exec(INPUT, known)
    b, options = [torch.tensor(of).float()], dict(patch=patch, expansion=expansion, min_size=float(patch))
    with torch_rng(0):
        scorer = PatchPruner(8, patch, keep)
    tokens, cells, optimizer = known["features"].flatten(1).T[None], valid_cells(None, 1, (12, 12), (96, 96)), torch.optim.AdamW(scorer.parameters(), lr=5e-3)
    first = scorer.score(tokens, (12, 12), cells).detach().requires_grad_()
    slope, = torch.autograd.grad(cass_loss(first, b, (12, 12), (96, 96), kind, **options), first)
    for _ in range(steps):
        optimizer.zero_grad()
        cass_loss(scorer.score(tokens, (12, 12), cells), b, (12, 12), (96, 96), kind, **options).backward()
        optimizer.step()
    scores = scorer.score(tokens, (12, 12), cells).detach()
    n, top = 12 // patch, float(slope.abs().max())
    at = lambda v: v.float().view(n, n).repeat_interleave(patch, 0).repeat_interleave(patch, 1).numpy()
    dark = np.where(at(keep_patches(scores, keep)) > 0, 200, 50)                       # a quarter of the photograph's 200 is left
    return {TARGET: heatmap(at(soft_target_mask(b, (12, 12), (96, 96), **options)), 0, 1, "magma"), SCORES: heatmap(at(scores.sigmoid()), 0, 1),
            KEPT: np.repeat(dark[..., None], 3, 2), GRADIENT: heatmap(-at(slope), -top, top, "seismic_r")}


def shows(page, **view) -> None:
    """Every third cell of the left kind's panels has its colour, but where a box's line lies."""
    settled(page)
    for panel, want in expected(boxes(page), **view).items():
        for i in range(0, 12, 3):
            for j in range(1, 12, 3):
                x, y = 8 * j + 4, 8 * i + 4
                if any(min(abs(x - a), abs(x - c)) < 4 or min(abs(y - b), abs(y - d)) < 4 for a, b, c, d in boxes(page)):
                    continue
                got = pixel(page, panel, x / 96, y / 96)
                assert np.abs(np.subtract(got, want[i, j].astype(int))).max() <= 3, (panel, i, j, got, want[i, j], view)


def drag(page, start, end) -> None:
    page.mouse.move(*spot(page, TARGET, start[0] / 96, start[1] / 96))
    page.mouse.down()
    page.mouse.move(*spot(page, TARGET, end[0] / 96, end[1] / 96), steps=5)
    page.mouse.up()
    settled(page)


def slide(page, k: int) -> None:
    """One step of the k-th slider (expansion, keep ratio, patch size, steps), with the keyboard."""
    page.locator(".noUi-handle").nth(k).focus()
    page.keyboard.press("ArrowRight")
    settled(page)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_the_screen_is_what_the_functions_give(tmp_path):
    torch.set_num_threads(1)
    with opened(tmp_path, [CELL]) as (page, outside):
        shows(page)
        drag(page, (52, 50), (84, 82))                                                 # draw
        comes(page, 2)
        assert np.allclose(boxes(page), [[8, 8, 40, 40], [52, 50, 84, 82]], atol=1)
        shows(page)
        drag(page, (68, 66), (60, 62))                                                 # move
        assert np.allclose(boxes(page)[1], [44, 46, 76, 78], atol=1.5)
        shows(page)
        page.locator(".vfmkd-grid canvas").first.focus()                               # keys: move the chosen box by a pixel, a new one, and away with it
        was = boxes(page)[1]
        page.keyboard.press("Alt+ArrowRight")
        settled(page)
        assert np.allclose(boxes(page)[1], [was[0] + 1, was[1], was[2] + 1, was[3]])
        page.keyboard.press("n")
        comes(page, 3)
        page.keyboard.press("Delete")
        comes(page, 2)
        table = page.locator(".jp-OutputArea table").last.inner_text()

        slide(page, 1)
        shows(page, keep=.35)
        slide(page, 0)
        shows(page, keep=.35, expansion=.4)
        slide(page, 2)
        shows(page, keep=.35, expansion=.4, patch=2)
        page.locator(".jp-OutputArea select").first.select_option("area")
        shows(page, keep=.35, expansion=.4, patch=2, kind="area")
        assert page.locator(".jp-OutputArea table").last.inner_text() != table
        area = float(ask(page, "print(e.found['area'].shares.loc['large_obj', 'area'])"))
        assert f"{area:.2f}" in page.locator(".jp-OutputArea table tr", has_text="large_obj").last.inner_text()
        shot(page, tmp_path, "cass_widget")

        before = [pixel(page, TARGET, x, .3) for x in (.1, .3, .5, .7)]                 # a mistake is said, and the view stays
        ask(page, "was = e.canvas.boxes; e.canvas.boxes = [{'box': [90, 90, 120, 95], 'role': 'target', 'edit': True}]")
        settled(page)
        assert page.locator(".vfmkd-alert").inner_text() == "box 0 (90, 90, 120, 95) leaves the picture of 96×96 pixels."
        assert [pixel(page, TARGET, x, .3) for x in (.1, .3, .5, .7)] == before
        ask(page, "e.canvas.boxes = was")
        settled(page)
        assert page.locator(".vfmkd-alert").inner_text() == ""
        page.mouse.dblclick(*spot(page, TARGET, 24 / 96, 24 / 96))                      # a double click removes
        comes(page, 1)
        shows(page, keep=.35, expansion=.4, patch=2, kind="area")
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
