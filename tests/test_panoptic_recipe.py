"""The recipe of three stages is killed in the middle of each, started again, and ends in the same bytes as one that was left alone."""
import sys
import time

import pytest
from kill_resume import ended, kill, life

from vfmkd_nb.core.checkpoint import newest
from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.panoptic.data import PanopticConfig
from vfmkd_nb.panoptic.recipe import STAGES, train_recipe


@pytest.mark.slow
def test_killed_in_each_stage(tmp_path, monkeypatch):
    """SIGKILL after the second checkpoint of every stage: weights, table and finished stages are those of the undisturbed recipe."""
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))
    config = PanopticConfig(image_size=64, train_images=8, val_images=2, epochs=2, batch_size=2, lr=2e-3, input_scale=0.5, layers=["P4_S16"], accelerator="cpu", checkpoint_every=1, keep_last=8, audit_every=0)

    def train(name: str) -> None:
        sys.stdout = sys.stderr = open(tmp_path / f"{name}.txt", "a", buffering=1)
        train_recipe(config, tmp_path / name, FeatureStore(tmp_path / "features"))

    assert ended(life(lambda: train("calm")), 400)
    for stage in STAGES:
        checkpoints, pid, until = tmp_path / "killed" / stage / "checkpoints", life(lambda: train("killed")), time.monotonic() + 300
        while len(list(checkpoints.glob("step-*"))) < 2:
            assert not ended(pid) and time.monotonic() < until, f"the recipe was over before its stage {stage} could be killed"
            time.sleep(0.002)
        kill(pid)
        assert newest(checkpoints)[1]["step"] < 8 and not (tmp_path / "killed" / stage / "network.safetensors").exists()
    assert ended(life(lambda: train("killed")), 400)
    for name in [f"{stage}/network.safetensors" for stage in STAGES] + ["recipe.csv"]:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
    assert (tmp_path / "killed.txt").read_text().count("resumed") >= len(STAGES)
