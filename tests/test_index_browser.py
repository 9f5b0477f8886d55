"""The index and a comparison in a real browser: nothing is requested, nothing overflows, sorting and filtering work, at the width of a desk and of a phone."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_report import make_project

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = [pytest.mark.gui, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
SHOTS = os.environ.get("VFMKD_SHOTS")  # a folder to keep screenshots in, to be looked at


def scene(seed: int, score: float) -> np.ndarray:
    """A picture that differs from run to run."""
    from vfmkd_nb.core.scenes import make_scene
    image = make_scene(seed, size=160).image.copy()
    image[-14:, :int(160 * score)] = (20, 150, 130)
    return image


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """An index with an ablation, a comparison, and runs in every state."""
    from vfmkd_nb.core.comparison import Member, compare_members, write_pages
    from vfmkd_nb.core.config import Config
    from vfmkd_nb.core.runs import load_run, start_run, write_index

    class Options(Config):
        """Options with a long name and a long value."""
        mask: str = "none"
        edge_mask_kernel_size: int = 3
        images_dir: str = ""
        seed: int = 0

    before = dict(os.environ)
    os.environ.update(make_project(tmp_path_factory.mktemp("project")))
    reports, members = Path(os.environ["VFMKD_REPORTS"]), []
    rng = np.random.default_rng(0)
    for v, (mask, level) in enumerate({"none": .91, "band": .84, "ring_ignore": .925, "band_soft": .905}.items()):
        for seed in range(3):
            score = level + rng.normal(0, .006)
            run = start_run("edge", Options(mask=mask, seed=seed))
            run.note(teacher={"weights_sha256": "ab"})
            (run.dir / "tb").mkdir()
            lines = [{"kind": "epoch", "epoch": e, "step": e, "train": {"total": 1 / e}, "metrics": {"boundary_f": score * (1 - .6 ** e)}} for e in range(1, 11)]
            (run.dir / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (run.dir / "report.html").write_text("<!doctype html><title>report</title><p>report")
            (run.dir / "report.ipynb").write_text("{}")
            run.finish(("boundary_f", score, "max"), {"loss": .2 + v / 10}, {"edges of the same image": scene(3, score)}, pd.DataFrame({"id": ["a"], "f": [score]}))
            members.append(Member(mask, seed, load_run(run.dir)))
    start_run("edge_ablation", Options(images_dir="/a/rather/long/path/to/a/data/set/with_a_name_that_does_not_break_by_itself/images"))
    killed = start_run("edge", Options(mask="killed"))
    killed.record["process"]["started"] -= 1000
    killed.save()
    trace = "Traceback (most recent call last):\n" + "  File \"/somewhere/deep/in/a/package/that/has/a/long/path/module.py\", line 12, in f\n" * 12 + "ValueError: the loss is not finite"
    start_run("edge", Options(mask="broken")).close("failed", {"type": "ValueError", "message": "the loss is not finite at epoch 3, step 120 (batch of images 17, 4, 96, 3)", "traceback": trace})
    spec = {"name": "edge-masks", "report": "edge", "fixed": {"epochs": 20}, "variants": {m.variant: {"mask": m.variant} for m in members}, "factors": {"mask": ["none"]}, "seeds": [0, 1, 2],
            "members": [{"variant": m.variant, "seed": m.seed, "run": f"edge/{m.run.id}"} for m in members], "command": "vfmkd ablate edge --grid mask=none,band,ring_ignore,band_soft --seeds 3"}
    found = compare_members(members, "edge-masks", spec)
    page = write_pages(found, reports / "ablations" / "edge-masks")
    (page.parent / "ablation.json").write_text(json.dumps({**spec, "verdicts": found.verdicts}))
    yield {"index": write_index(reports), "comparison": page}
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a profile."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages, request):
    """A page opened from the disk at a width; what it asked for, and what it complained of."""
    which, width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, asked, said = context.new_page(), [], []
    tab.on("request", lambda r: asked.append(r.url))
    tab.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda e: said.append(str(e)))
    tab.goto(pages[which].as_uri())
    tab.wait_for_load_state("load")
    if SHOTS:
        tab.screenshot(path=f"{SHOTS}/{which}_{width}_{scheme}.png", full_page=True)
    yield tab, asked, said
    context.close()


EVERY = [(which, width, scheme) for which in ("index", "comparison") for width, scheme in ((1400, "light"), (1400, "dark"), (375, "light"), (375, "dark"))]


@pytest.mark.parametrize("opened", EVERY, indirect=True, ids=lambda p: "-".join(map(str, p)))
def test_nothing_is_requested_and_nothing_overflows(opened):
    tab, asked, said = opened
    assert all(url.startswith(("file://", "data:")) for url in asked) and sum(url.startswith("file://") for url in asked) == 1, asked
    assert not said
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = tab.evaluate("[...document.querySelectorAll('button, input, select')].filter(e => e.offsetParent && !e.closest('th') && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)")
    assert not small
    names = tab.evaluate("[...document.querySelectorAll('img:not([alt]), input:not([aria-label]), select:not([aria-label]):not(label select), button:empty')].map(e => e.outerHTML)")
    assert not names


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG contrast of two sRGB colours."""
    light = [sum(w * (c / 12.92 if c <= .03928 else ((c + .055) / 1.055) ** 2.4) for w, c in zip((.2126, .7152, .0722), (x / 255 for x in rgb))) for rgb in (a, b)]
    return (max(light) + .05) / (min(light) + .05)


@pytest.mark.parametrize("opened", [("index", 1400, "light"), ("index", 1400, "dark")], indirect=True, ids=["light", "dark"])
def test_text_can_be_read(opened):
    tab, _, _ = opened
    rgb = """n => { const d = document.createElement('i'); d.style.color = `var(${n})`; document.body.append(d); const c = getComputedStyle(d).color.match(/[0-9.]+/g).slice(0, 3).map(Number); d.remove(); return c }"""
    for ink in ("--ink", "--soft", "--accent", "--done", "--running", "--failed", "--killed"):
        for ground in ("--bg", "--panel"):
            assert contrast(tab.evaluate(rgb, ink), tab.evaluate(rgb, ground)) >= 4.5, (ink, ground)


@pytest.mark.parametrize("opened", [("index", 1400, "light")], indirect=True)
def test_sorting_filtering_and_themes(opened):
    tab, _, _ = opened
    visible = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden)"
    assert tab.evaluate(f"{visible}.length") == 15
    tab.get_by_role("button", name="Main metric").click()
    values = [float(x) for x in tab.evaluate(f"{visible}.map(r => r.cells[2].dataset.sort)") if x]
    assert len(values) == 12 and values == sorted(values, reverse=True)
    assert tab.evaluate(f"{visible}.map(r => r.cells[2].dataset.sort).slice(-3)") == ["", "", ""]  # those without a number come last
    tab.get_by_role("button", name="Main metric").click()
    assert [float(x) for x in tab.evaluate(f"{visible}.map(r => r.cells[2].dataset.sort)") if x] == sorted(values)
    assert tab.evaluate("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    tab.get_by_role("searchbox").fill("mask=ring_ignore seed=1")
    assert tab.evaluate(f"{visible}.length") == 1 and tab.locator("#shown").inner_text() == "1 shown"
    tab.get_by_role("searchbox").fill("no such thing")
    assert tab.get_by_text("No run matches the filter.").is_visible()
    tab.get_by_role("searchbox").fill("")
    tab.get_by_role("button", name="failed 1").click()
    assert tab.evaluate(f"{visible}.map(r => r.dataset.is)") == ["failed"]
    tab.locator('details.error summary').click()
    assert tab.locator('details.error pre').is_visible()
    tab.get_by_role("button", name="failed 1").click()
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.get_by_role("button", name="switch to dark colours").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("opened", [("index", 1400, "light")], indirect=True)
def test_links_lead_to_files(opened, pages):
    tab, _, _ = opened
    links = tab.evaluate("[...document.querySelectorAll('a')].map(a => decodeURIComponent(new URL(a.href).pathname))")
    assert len(links) >= 30 and all(Path(x).is_file() for x in links)
    tab.get_by_text("TensorBoard", exact=True).first.click()
    assert "tensorboard --logdir reports/" in tab.locator(".cmd code").first.inner_text()


@pytest.mark.parametrize("opened", [("index", 375, "light")], indirect=True)
def test_a_phone_sees_cards(opened):
    tab, _, _ = opened
    assert tab.evaluate("getComputedStyle(document.querySelector('tbody tr')).display") == "grid"
    tab.get_by_label("order").select_option("lowest metric")
    values = [float(x) for x in tab.evaluate("[...document.querySelectorAll('tbody tr')].map(r => r.cells[2].dataset.sort)") if x]
    assert values == sorted(values)
