"""The boundary benchmark on people: each annotator against the others must reach the agreement that is published for BSDS500 (F = 0.79 to 0.80)."""
import pytest

from vfmkd_nb.core.metrics import BoundaryBenchmark
from vfmkd_nb.edge.data import boundary_maps


def human_f(root, split: str, count: int) -> float:
    """F of every annotator against the other annotators of the same image, counts summed over the first images of a split."""
    stems = sorted({p.stem.rsplit("_a", 1)[0] for p in (root / "boundaries" / split).glob("*.png")})
    bench = BoundaryBenchmark(thresholds=1)
    for stem in stems[:count]:
        maps = boundary_maps(root, split, stem).numpy()
        for k in range(len(maps)):
            bench.update(maps[k] * 0.9, [m for j, m in enumerate(maps) if j != k], f"{stem}_a{k}")
    return bench.compute()["ods"]


def test_people_agree_on_a_few_images(real_data):
    assert 0.75 < human_f(real_data / "bsds500", "test", 4) < 0.90


@pytest.mark.slow
@pytest.mark.parametrize(("split", "measured"), [("test", 0.7973), ("val", 0.7913)])
def test_people_agree_as_published(real_data, split, measured):
    """On 30 images of a split; the published figure is of 200 test images."""
    found = human_f(real_data / "bsds500", split, 30)
    assert 0.78 < found < 0.81
    assert found == pytest.approx(measured, abs=5e-4)
