"""KD-off identity, for every chapter that distils: with every distillation weight 0 the student is trained bit for bit as without a teacher (cass: without its pruner's loss)."""
import pytest

from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.core.trust import same_weights


def edge(folder, loss_type):
    from vfmkd_nb.edge.data import EdgeConfig, make_samples
    from vfmkd_nb.edge.train import kd_off_pair

    config = EdgeConfig(image_size=64, teacher="random:0", train_images=8, val_images=1, batch_size=4, loss_type=loss_type)
    return kd_off_pair(make_samples(config)[0], folder, steps=2)


def esam(folder, freeze_encoder):
    from vfmkd_nb.esam.data import EsamConfig
    from vfmkd_nb.esam.train import kd_off_pair

    config = EsamConfig(student="tiny", checkpoint="random", teacher="random:0:tiny", train_images=8, val_images=2, batch_size=4, freeze_encoder=freeze_encoder)
    return kd_off_pair(config, folder, 2, FeatureStore())


def cass(folder, kind):
    from vfmkd_nb.cass.train import CassConfig, cass_off_pair

    return cass_off_pair(CassConfig(image_size=64, train_images=8, val_images=2, batch_size=4, cass_kind=kind), folder, steps=2)


def panoptic(folder, fusion):
    from vfmkd_nb.panoptic.data import PanopticConfig
    from vfmkd_nb.panoptic.train import kd_off_pair

    config = PanopticConfig(image_size=128, input_scale=.5, val_images=2, batch_size=2, fusion=fusion, use_resolution_distill=True, use_sam_distill=True, teacher="random:0")
    return kd_off_pair(config, folder)


CASES = [(edge, "fgd"), (edge, "fsdlike"), (edge, "mse"), (edge, "cosine"), (esam, True), (esam, False), (cass, "obn"), (cass, "document"), (panoptic, "softmax"), (panoptic, "fast")]


@pytest.mark.parametrize("chapter, setting", CASES, ids=[f"{c.__name__}-{s}" for c, s in CASES])
def test_weight_zero_is_no_teacher(chapter, setting, tmp_path, monkeypatch):
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path / "data"))
    found = same_weights(*chapter(tmp_path / "runs", setting))
    assert found["identical"], found["different"]
    assert chapter is not edge or found["extra"], "the run with a teacher has adapters"
