"""JupyterLab in Chromium as a reader meets it: a server of its own in a temporary folder, one notebook run from top to bottom, no request outside the machine."""
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
}
READY = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  if (!panel || !panel.sessionContext) return false;
  return panel.sessionContext.isReady && panel.sessionContext.session?.kernel?.connectionStatus === 'connected' && panel.sessionContext.session.kernel.status === 'idle';
}"""

KERNEL = "() => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel; return k ? `${k.status}, ${k.connectionStatus}` : 'absent'; }"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def server(folder: Path):
    """A JupyterLab on 127.0.0.1 that keeps everything it writes in `folder`; gives its address and token."""
    port, token = _free_port(), secrets.token_hex(16)
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    private = {name: str(folder / ".jupyter" / name.lower()) for name in names}
    for name, value in SETTINGS.items():
        path = Path(private["JUPYTERLAB_SETTINGS_DIR"]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               "--expose-app-in-browser", f"--ServerApp.root_dir={folder}", *(["--allow-root"] if os.geteuid() == 0 else [])]
    with open(folder / "lab.log", "w") as log:
        process = subprocess.Popen(command, env={**os.environ, **private}, stdout=log, stderr=log, cwd=folder)
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((folder / "lab.log").read_text()[-3000:]) from None
                time.sleep(.3)
        yield address, token
    finally:
        process.terminate()
        process.wait(30)


def answer_dialog(page) -> None:
    """Accept a question that JupyterLab asks on a slow machine, such as which kernel is meant."""
    if (dialog := page.locator(".jp-Dialog")).count():
        print("JupyterLab asks:", " ".join(dialog.first.inner_text().split()))
        dialog.first.locator(".jp-mod-accept").click()


def _run_all(page, cells: int, limit: float) -> None:
    """Run the cells with the keyboard, as a reader does: who sees no star beside the cell presses the keys again."""
    for k in range(cells):
        model, end = f"window.jupyterapp.shell.currentWidget.content.widgets[{k}].model", time.monotonic() + limit
        while not page.evaluate(f"() => {model}.executionCount || {model}.executionState === 'running'"):
            if time.monotonic() > end:
                raise TimeoutError(f"cell {k} did not start within {limit} s: kernel {page.evaluate(KERNEL)}")
            answer_dialog(page)
            page.evaluate(f"() => {{ const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = {k}; n.mode = 'command'; n.node.focus(); }}")
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(3000)
        page.wait_for_function(f"() => {model}.executionCount && {model}.executionState !== 'running'", timeout=limit * 1e3, polling=250)


@contextmanager
def opened(folder: Path, cells: list[str], limit: float = 180):
    """A page of JupyterLab with a notebook of these cells, all run; gives the page and the addresses outside the machine that were asked for. An error in the browser's console fails the test at the end."""
    from playwright.sync_api import sync_playwright

    nb = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
          "cells": [{"id": f"c{i}", "cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None} for i, source in enumerate(cells)]}
    (folder / "page.ipynb").write_text(json.dumps(nb))
    with server(folder) as (address, token), sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page, outside, errors = browser.new_page(viewport={"width": 1400, "height": 1000}), [], []
        page.on("request", lambda r: outside.append(r.url) if not re.match(rf"({address}|data:|blob:|ws://127\.0\.0\.1)", r.url) else None)
        page.goto(f"{address}/lab/tree/page.ipynb?token={token}")
        page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget", timeout=limit * 1e3)
        page.wait_for_function(READY, timeout=limit * 1e3, polling=250)
        page.wait_for_timeout(1500)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        try:
            _run_all(page, len(cells), limit)
            yield page, outside
            assert not errors, f"the console says {errors[:3]}"
        except BaseException:
            shot(page, folder, "failed")
            raise
        finally:
            browser.close()


def ask(page, code: str) -> str:
    """What Python code prints in the page's kernel."""
    return page.evaluate("""async code => {
      const future = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code, store_history: false }), said = [];
      future.onIOPub = m => { if (m.header.msg_type === "stream") said.push(m.content.text); if (m.header.msg_type === "error") said.push(m.content.traceback.join("\\n")); };
      await future.done; return said.join("").trim();
    }""", code)


def settled(page, canvas: str = ".vfmkd-grid", limit: float = 90) -> None:
    """Wait until the kernel is idle and every canvas has drawn what it was last sent."""
    page.wait_for_timeout(200)  # what was just done has reached the kernel
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'", timeout=limit * 1e3, polling=50)
    page.wait_for_selector(f"{canvas}[data-drawn]", timeout=limit * 1e3)
    page.wait_for_timeout(150)


def spot(page, panel: int, x: float, y: float) -> tuple[float, float]:
    """Where on the page the point (x, y), as fractions of a panel of the canvas, lies."""
    canvas = page.locator(".vfmkd-grid canvas").nth(panel)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def shot(where, folder: Path, name: str) -> None:
    """Keep a picture of a page or of an element: in the folder that VFMKD_SHOTS names, to be looked at, or else in the test's own."""
    where.screenshot(path=Path(os.environ.get("VFMKD_SHOTS") or folder) / f"{name}.png")


def pixel(page, panel: int, x: float, y: float) -> tuple[int, ...]:
    """The colour drawn there."""
    return tuple(page.locator(".vfmkd-grid canvas").nth(panel).evaluate("(c, [x, y]) => [...c.getContext('2d').getImageData(Math.floor(x * c.width), Math.floor(y * c.height), 1, 1).data].slice(0, 3)", [x, y]))
