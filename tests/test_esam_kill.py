"""Kills: an esam run, and the prediction of a folder, end bit-identical to ones that were left alone."""
import json
import os
import random
import sys
import time

import pytest
import torch
from kill_resume import ended, kill, life
from PIL import Image

from vfmkd_nb.core.checkpoint import newest
from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.core.scenes import make_scene
from vfmkd_nb.esam.data import EsamConfig
from vfmkd_nb.esam.predict import predict_folder
from vfmkd_nb.esam.train import train_esam


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    return all(map(_same, a, b)) and len(a) == len(b) if isinstance(a, list | tuple) else a == b


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Adaptive weights, a teacher with all terms, jittered boxes and sampled objects: all of it comes back."""
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))
    store = FeatureStore(tmp_path / "features")
    config = EsamConfig(checkpoint="random", target_size=64, train_images=8, val_images=2, max_objects=2, epochs=6, teacher="random:1:tiny", feature_weight=.5, attention_weight=.5,
                        adaptive_weights=True, accelerator="cpu", checkpoint_every=1)

    def train(name: str) -> None:
        sys.stdout = sys.stderr = open(tmp_path / f"{name}.txt", "a")
        train_esam(config, run_dir=tmp_path / name, store=store)

    began = time.monotonic()
    assert ended(life(lambda: train("calm")), 500)
    whole, draw, kills = time.monotonic() - began, random.Random(0), 0
    while kills < 5:
        pid = life(lambda: train("killed"))
        if ended(pid, draw.uniform(.2, .7) * whole):
            break
        kill(pid)
        kills += 1
    assert ended(life(lambda: train("killed")), 500)
    states = [newest(tmp_path / name / "checkpoints")[1] for name in ("calm", "killed")]
    assert kills >= 1
    for key in ("model", "optimizer", "task", "step", "epoch"):
        assert _same(states[0][key], states[1][key]), key


def test_a_killed_prediction_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL while a folder is predicted; started again, the file is the same and finished pictures are not done twice."""
    (tmp_path / "images").mkdir()
    boxes = {}
    for k in range(12):
        scene = make_scene(k, 96)
        Image.fromarray(scene.image).save(tmp_path / "images" / f"{k}.png")
        boxes[f"{k}.png"] = [[x, y, x + w, y + h] for x, y, w, h in (o.bbox_xywh for o in scene.objects)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    work = lambda name: predict_folder("random:0:tiny", tmp_path / "images", tmp_path / "boxes.json", tmp_path / name)
    whole = work("calm.json").read_bytes()
    read, tell = os.pipe()
    pid = life(lambda: work("killed.json"), tell)  # it tells of every flush: the header, then a picture each
    os.close(tell)
    assert all(os.read(read, 1) for _ in range(5))
    kill(pid)
    os.close(read)
    assert not (tmp_path / "killed.json").exists()
    assert (tmp_path / "killed.json.partial").read_bytes().count(b"\n") >= 4
    assert work("killed.json").read_bytes() == whole
