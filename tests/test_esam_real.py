"""The esam chapter on real pictures: PCB photographs, binarised scans with derived masks, and nuclei, up to 375 objects in a picture."""
import json
import resource

import pytest

from vfmkd_nb.core.coco import read_split
from vfmkd_nb.core.data import make_loader
from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.core.train import evaluate
from vfmkd_nb.esam.data import EsamConfig, EsamSamples
from vfmkd_nb.esam.promptable import EsamPromptable
from vfmkd_nb.esam.train import EsamTask, start_model, train_esam

SMALL = dict(checkpoint="random", target_size=64, accelerator="cpu", batch_size=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


def test_photographs_with_and_without_defects(real_data, store, tmp_path):
    """A run on pictures of which some have no object; each was encoded once, and every number is defined."""
    config = EsamConfig(images_dir=str(real_data / "pcb_photo_defects"), train_images=8, val_images=4, epochs=1, **SMALL)
    result = train_esam(config, run_dir=tmp_path / "run", store=store)
    assert store.stats.misses == 12
    assert 0 <= result.metrics["miou"] <= 1 and result.metrics["objects"] == len(result.per_object)
    assert result.fit.steps["total"].notna().all()


def test_derived_masks_are_not_dropped_for_being_small(real_data):
    """Defects of a few pixels take part; what does not is counted."""
    folder = real_data / "deeppcb"
    data = read_split(folder, "val", kind="instances_derived")
    before = sum(len(r.objects) for r in data.images)
    config = EsamConfig(**SMALL)
    samples = EsamSamples(data, config, EsamPromptable(start_model(config), "esam:tiny"), None, FeatureStore(folder))
    after = sum(len(r.objects) for r in samples.data.images)
    left_out = sum(n for reason, n in data.problems.counts.items() if "not trained on" in reason)
    assert before - after == left_out and after > .9 * before


@pytest.mark.slow
def test_ragged_pictures_in_bounded_memory(real_data, store):
    """0, 1, 7 and 375 objects in one batch train and evaluate; all 375 are scored, in chunks."""
    data = read_split(real_data / "dsb2018_nuclei", "val")
    crowded = max(data.images, key=lambda r: len(r.objects))
    assert len(crowded.objects) == 375
    few = [r for r in data.images if len(r.objects) >= 7][:3]
    for record, keep in zip(few, (0, 1, 7)):
        del record.objects[keep:]
    data.images = [*few, crowded]
    config = EsamConfig(max_objects=400, eval_chunk=32, **SMALL)
    samples = EsamSamples(data, config, EsamPromptable(start_model(config), "esam:tiny"), None, store).prepare()
    counts = [len(r.objects) for r in samples.data.images]
    assert counts[:3] == [0, 1, 7] and counts[3] >= 370
    task = EsamTask(config)
    (batch,) = make_loader(samples, batch_size=4, shuffle=True)
    losses = task.losses(batch, 1)
    losses["total"].backward()
    assert int(losses["objects"]) == sum(counts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics = evaluate(task, samples, config)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert metrics["objects"] == sum(counts)
    assert grown < 600, f"evaluation took {grown:.0f} MiB more"


def test_no_object_at_all(real_data, store, tmp_path):
    """A data set whose pictures have no object is evaluated as such, not as a score of 0."""
    data = read_split(real_data / "pcb_photo_defects", "val")
    data.images = [r for r in data.images if not r.objects][:2]
    if not data.images:
        pytest.skip("every picture has a defect")
    config = EsamConfig(**SMALL)
    samples = EsamSamples(data, config, EsamPromptable(start_model(config), "esam:tiny"), None, store).prepare()
    metrics = evaluate(EsamTask(config), samples, config)
    assert metrics["objects"] == 0 and metrics["miou"] != metrics["miou"]
    json.dumps({k: None if v != v else v for k, v in metrics.items()})
