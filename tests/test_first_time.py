"""The way of a newcomer, timed: clone, `make lab`, the index, the edge widget, a training cell, the report. Every step uses only what the page before it says."""
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import CHROMIUM, FLAGS, READY, answer_dialog, shot

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")]


class Watch(dict):
    """Seconds by step."""

    @contextmanager
    def step(self, name: str):
        """Time a block."""
        begun = time.monotonic()
        yield
        self[name] = time.monotonic() - begun


def newcomer(folder: Path) -> dict[str, str]:
    """An environment without settings: an empty home; only the package cache is shared, where there is one."""
    cache = os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv"
    (folder / "home").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VFMKD_", "JUPYTER", "VIRTUAL_ENV", "PYTHONPATH"))}
    return {**kept, "HOME": str(folder / "home"), "UV_CACHE_DIR": str(cache)}


@contextmanager
def make_lab(clone: Path, env: dict[str, str]):
    """`make lab`, as the README says; gives the address that it prints."""
    log = clone.parent / "lab.log"
    with open(log, "w") as out:
        process = subprocess.Popen(["make", "lab", "FLAGS=--no-browser --expose-app-in-browser"], cwd=clone, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        end = time.monotonic() + 900
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/lab/tree/\S*token=\w+", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(.5)
        yield found.group()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def ready(page, path: str) -> None:
    """Wait until a notebook is in front and its kernel idle."""
    page.wait_for_function(f"() => window.jupyterapp?.shell.currentWidget?.context?.path === '{path}'", timeout=120_000)
    end = time.monotonic() + 180
    while not page.evaluate(READY):
        assert time.monotonic() < end, f"the kernel of {path} is not ready"
        answer_dialog(page)
        page.wait_for_timeout(500)


def run_cell(page, holding: str, limit: float) -> str:
    """Click into the code cell that holds a text, run it, and give what it prints."""
    cell = page.locator(".jp-Notebook:visible .jp-CodeCell", has_text=holding).first
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.content.activeCell.model.executionState === 'running'", timeout=60_000)
    page.wait_for_function("() => { const m = window.jupyterapp.shell.currentWidget.content.activeCell.model; return m.executionCount && m.executionState !== 'running'; }", timeout=limit * 1e3, polling=250)
    return cell.locator(".jp-OutputArea").inner_text()


def test_from_clone_to_report(tmp_path):
    """Every step works, and none asks an address outside the machine."""
    from playwright.sync_api import sync_playwright

    clone, env, watch, outside = tmp_path / "vfmkd_nb", newcomer(tmp_path), Watch(), []
    with watch.step("clone"):
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True, env=env)
    assert "`make lab` opens JupyterLab" in (clone / "README.md").read_text()
    begun = time.monotonic()
    with make_lab(clone, env) as address, sync_playwright() as p:
        watch["make lab, with the environment"] = time.monotonic() - begun
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("request", lambda r: outside.append(r.url) if not re.match(r"(https?|ws)://127\.0\.0\.1|data:|blob:", r.url) else None)
        try:
            with watch.step("the index"):
                page.goto(address)
                ready(page, "nbs/index.ipynb")
                page.get_by_role("heading", name="VFMKD workbench").wait_for()
            with watch.step("a training cell"):
                said = run_cell(page, "train_edge(config", 300)
                assert float(re.search(r"'boundary_f': ([\d.]+)", said).group(1)) > .3, said
            with watch.step("the edge widget"):
                page.locator(".jp-Notebook:visible a[href*='05_widget']", has_text="widget").first.click()
                ready(page, "nbs/edge/05_widget.ipynb")
                page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
                page.wait_for_function("() => window.jupyterapp.shell.currentWidget.content.widgets.every(c => c.model.type !== 'code' || !c.model.sharedModel.getSource().trim() || (c.model.executionCount && c.model.executionState !== 'running'))",
                                       timeout=300_000, polling=500)
                assert page.locator(".jp-Notebook:visible .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
                canvas = page.locator(".jp-Notebook:visible .vfmkd-grid[data-drawn]").first
                canvas.scroll_into_view_if_needed()
                said, drawn = page.locator(".jp-Notebook:visible .widget-html-content").first, canvas.get_attribute("data-drawn")
                before = said.inner_text()
                page.locator(".jp-Notebook:visible .noUi-handle").first.focus()
                page.keyboard.press("ArrowRight")
                page.wait_for_function("([e, was]) => e.dataset.drawn !== was", arg=[canvas.element_handle(), drawn], timeout=60_000)
                assert "coverage" in before and said.inner_text() != before  # another kernel, another band
            shot(page, tmp_path, "first_time_widget")
        except BaseException:
            shot(page, tmp_path, "first_time_failed")
            raise
        finally:
            browser.close()
    with watch.step("make report"):
        done = subprocess.run(["make", "report"], cwd=clone, env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("request", lambda r: outside.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
        page.goto((clone / "reports" / "index.html").as_uri())
        assert page.get_by_text("edge_ablation").count() and page.locator("table tr").count() > 4
        shot(page, tmp_path, "first_time_report")
        browser.close()
    print(" · ".join(f"{name} {seconds:.0f} s" for name, seconds in watch.items()))
    assert not outside, f"asked for {outside[:3]}"
    assert not subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout.replace(" M nbs/index.ipynb\n", "").replace(" M nbs/edge/05_widget.ipynb\n", ""), "the steps leave files behind"
    shutil.rmtree(clone)
