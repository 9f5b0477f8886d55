"""KD-off identity: with every distillation weight 0 a chapter trains the student bit for bit as without a teacher."""
import importlib

import pytest

CHAPTERS = {"edge": ("vfmkd_nb.edge.data:EdgeConfig", "vfmkd_nb.edge.data:make_samples", "vfmkd_nb.edge.train:kd_off_pair", dict(image_size=64, teacher="random:0", train_images=8, val_images=1, batch_size=4))}


def _named(spec: str):
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("loss_type", ["fgd", "fsdlike", "mse", "cosine"])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_weight_zero_is_no_teacher(chapter, loss_type, tmp_path, monkeypatch):
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))
    from vfmkd_nb.core.trust import same_weights

    config, samples, pair, options = CHAPTERS[chapter]
    zero, bare = _named(pair)(_named(samples)(_named(config)(**options, loss_type=loss_type))[0], tmp_path / "runs", steps=2)
    found = same_weights(zero, bare)
    assert found["identical"], found["different"]
    assert found["extra"], "the run with a teacher has adapters"
