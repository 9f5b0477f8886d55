"""Every chapter's widget in JupyterLab in Chromium: it appears, a control changes the picture, errors are absent, and nothing asks an outside host."""
import pytest
from lab import CHROMIUM, opened

WIDGETS = {
    "edge": """
import torch
from vfmkd_nb.edge.widget import MaskExplorer
image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)); target = torch.zeros(16, 16); target[4:12, 4] = target[4, 4:12] = 1
explorer = MaskExplorer([image], [target], [torch.randn(16, 16, generator=torch.Generator().manual_seed(1))], ["noise"])
explorer.panel""",
}


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
@pytest.mark.parametrize("chapter", WIDGETS)
def test_widget_in_jupyterlab(chapter, tmp_path):
    with opened(tmp_path, [WIDGETS[chapter]]) as (page, outside):
        page.wait_for_selector(".jp-OutputArea .widget-image, .jp-OutputArea canvas", timeout=30_000)
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        picture = "() => [...document.querySelectorAll('.jp-OutputArea .widget-image')].map(i => i.src).join()"
        page.screenshot(path=tmp_path / "widget.png")
        before = page.evaluate(picture)
        page.locator(".jp-OutputArea .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")  # the keyboard alone must do
        page.wait_for_function(f"before => ({picture})() !== before", arg=before, timeout=30_000)
        assert not outside, f"asked for {outside[:3]}"
