"""Every chapter's widget in JupyterLab in Chromium: it appears, a control makes the right change, errors are absent, and nothing asks an outside host."""
import pytest
from lab import CHROMIUM, ask, opened, pixel, settled

EDGE = """
import torch
from vfmkd_nb.edge.widget import MaskExplorer
from vfmkd_nb.edge.losses import mask_weights
image = torch.full((3, 64, 64), .5); target = torch.zeros(16, 16); target[4:12, 4] = target[4, 4:12] = 1
e = MaskExplorer([image], [target], [torch.randn(16, 16, generator=torch.Generator().manual_seed(1))], ["noise"])
e"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_edge_widget(tmp_path):
    """The weight on the screen is the loss's own, before and after the kernel is changed by keyboard."""
    with opened(tmp_path, [EDGE]) as (page, outside):
        settled(page)
        tinted = lambda i, j: pixel(page, 4, (j + .5) / 16, (i + .5) / 16)[2] > 170  # the band's blue over grey 128

        def agrees(kernel: int) -> None:
            weights = ask(page, f"print(''.join(str(int(v)) for v in mask_weights(target[None], {kernel}, 'band')[0].flatten().tolist()))")
            shown = "".join(str(int(tinted(i, j))) for i in range(16) for j in range(16))
            assert shown == weights and 0 < weights.count("1") < 256

        agrees(3)
        page.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")  # the keyboard alone must do
        settled(page)
        assert ask(page, "print(e.view.kernel_size)") == "5"
        agrees(5)
        assert "coverage" in page.locator(".jp-OutputArea .widget-html").first.inner_text()
        ask(page, "e.controls['epoch'].value = 2")
        settled(page)
        assert "mask off" in page.locator(".jp-OutputArea .widget-html").first.inner_text() and all(tinted(i, j) for i, j in ((0, 0), (15, 15)))
        page.screenshot(path=tmp_path / "widget.png")
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not outside, f"asked for {outside[:3]}"
