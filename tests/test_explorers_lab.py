"""Every chapter's run, opened in JupyterLab at the width of a laptop, light and dark: the pictures of the README are made here.

`make pictures` puts them into nbs/images; VFMKD_SHOTS=DIR keeps both themes in DIR.
"""
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import CHROMIUM, ask, opened, settled, shot

RUNS = {  # short, but long enough that there is something to see
    "edge": "--epochs 12 --train-images 48 --val-images 12 --lr 4e-3 --enable-edge-mask-progressive true --mask ring_ignore --benchmark off --keep-every 3",
    "esam": "--epochs 4 --train-images 24 --val-images 8 --freeze-encoder false --lr 2e-3 --shared-weight 0.5",
    "boxes": "--epochs 6",
    "cass_detector": "--epochs 24 --train-images 48 --val-images 8 --image-size 160 --lr 4e-3 --evaluate-every 12 --keep-every 12",
    "panoptic": "--epochs 8 --evaluate-every 8 --keep-every 4",
}
CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const seen = {};
  for (const what of ['.vfmkd-help', '.vfmkd-bar label', '.vfmkd-grid figcaption', '.vfmkd-rows th button', '.vfmkd-rows td', '.widget-label', '.widget-html-content', '.jupyter-button', 'select'])
    for (const e of document.querySelectorAll(`.jp-OutputArea ${what}`)) if (e.innerText.trim()) {
      const a = light(getComputedStyle(e).color), b = light(ground(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      seen[what] = Math.min(seen[what] ?? 99, ratio);
    }
  return seen;
}"""


def finished(report: str, folder: Path, env: dict[str, str]) -> Path:
    """The folder of a run of a report."""
    done = subprocess.run([Path(sys.executable).with_name("vfmkd"), "report", report, *RUNS[report].split()], env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(p.parent for p in (folder / "reports" / report).glob("*/record.json"))


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
@pytest.mark.parametrize("report", RUNS)
def test_a_run_opens_and_is_legible(report, tmp_path, monkeypatch):
    """Nothing runs over the page's edge at 1280 pixels, and every text stands out from its ground by WCAG's 4.5 in the light and in the dark theme."""
    from PIL import Image

    for name, value in {"VFMKD_HOME": str(Path(__file__).parents[1]), "VFMKD_REPORTS": str(tmp_path / "reports"), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    run = finished(report, tmp_path, dict(os.environ))
    (tmp_path / "lab").mkdir()
    with opened(tmp_path / "lab", [f"from vfmkd_nb.core.opened import open_run\ne = open_run({str(run)!r}).explore()\ne"], limit=300) as (page, outside):
        page.set_viewport_size({"width": 1280, "height": 1400})
        settled(page)
        assert json.loads(ask(page, "import json; print(json.dumps(e.canvas.alert))")) == ""
        area = page.locator(".jp-OutputArea").last
        wide = area.evaluate("e => Math.max(...[...e.querySelectorAll('.vfmkd-grid, .vfmkd-rows, .widget-hbox, .widget-vbox')].map(x => x.getBoundingClientRect().right)) - e.getBoundingClientRect().right")
        assert wide <= 1, f"{wide} pixels stand over the page's edge"
        for theme in ("Light", "Dark"):
            page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{ theme: 'JupyterLab {theme}' }})")
            page.wait_for_timeout(1500)
            faint = {what: round(ratio, 2) for what, ratio in page.evaluate(CONTRAST).items() if ratio < 4.5}
            shot(area, tmp_path, f"{report}_{theme.lower()}")
            assert not faint, f"{theme}: {faint}"
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
        page.wait_for_timeout(1500)
        picture = Image.open(io.BytesIO(area.screenshot())).convert("RGB")
        picture.thumbnail((720, 2000), Image.Resampling.LANCZOS)
        picture.save(Path(os.environ.get("VFMKD_PICTURES") or tmp_path) / f"widget_{re.sub('_detector', '', report)}.jpg", quality=72, optimize=True)
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
