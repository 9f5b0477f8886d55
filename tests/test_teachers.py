"""Teachers where a notebook cannot follow: an empty hub cache without a network, folders in odd states, real photographs."""
import os
import subprocess
import sys

import pytest
import torch

from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.features import FeatureStore, teacher_features
from vfmkd_nb.core.teachers import load_teacher

OFFLINE = """
import sys, time
import timm
from transformers import AutoConfig, SamImageProcessor
from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.teachers import load_teacher
for spec in sys.argv[1:]:
    begin = time.monotonic()
    try: load_teacher(spec)
    except BadInput as e: print(e)
    assert time.monotonic() - begin < 20, spec  # the hub client's retries alone would take 23
"""


def test_pretrained_without_network(tmp_path):
    """Weights that are neither cached nor reachable: one sentence each, soon, and no retries."""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://localhost:9", "no_proxy": "localhost"}
    specs = ["hf:facebook/sam2.1-hiera-base-plus", "timm:resnet18", "timm:samvit_base_patch16.sa1b"]
    done = subprocess.run([sys.executable, "-c", OFFLINE, *specs], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [("cannot be reached" in line) for line in done.stdout.splitlines()] == [True] * 3
    assert "Retrying" not in done.stderr


@pytest.mark.parametrize("content, said", [("", "no model can be loaded"), ("{", "no model can be loaded"), ("[1]", "no model can be loaded"), ('{"model_type": "bert"}', "type 'bert'"), ('{"model_type": "no-such"}', "no model can be loaded")])
def test_folder_with_a_bad_config(tmp_path, content, said):
    """Empty, cut, misshapen or foreign configuration files."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        load_teacher(str(tmp_path))


def test_folder_without_anything(tmp_path):
    with pytest.raises(BadInput, match="no model can be loaded"):
        load_teacher(str(tmp_path))
    with pytest.raises(BadInput, match="does not exist"):
        load_teacher(str(tmp_path / "absent"))


@pytest.mark.parametrize("name, content", [("a.pt", b""), ("a.safetensors", b"\0" * 100), ("a.pt", b"garbage"), ("a.pth", None)])
def test_checkpoint_that_is_none(tmp_path, name, content):
    """A file that is no checkpoint, or one that is absent."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name):
        load_teacher(f"timm:resnet10t@{tmp_path / name}")


def test_checkpoint_cannot_run_code(tmp_path):
    """A pickle that would run a command is refused unread."""
    class Bomb:
        def __reduce__(self): return os.system, (f"touch {tmp_path / 'ran'}",)
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(BadInput):
        load_teacher(f"timm:resnet10t@{tmp_path / 'bomb.pt'}")
    assert not (tmp_path / "ran").exists()


def test_features_of_a_photograph(real_data, tmp_path):
    """A photograph through teacher and store: computed once, then read; and another teacher never gets the first one's features."""
    from vfmkd_nb.core.coco import image_digest, read_image
    path = sorted((real_data / "bsds500/images").rglob("*.jpg"))[0]
    image, sha = read_image(path), image_digest(path)
    store, teacher = FeatureStore(tmp_path), load_teacher("random:0", layers=["P4_S16"])
    first = teacher_features(store, teacher, image, sha)["P4_S16"]
    assert first.shape == (128, -(-image.shape[1] // 16), -(-image.shape[2] // 16))
    assert teacher_features(store, teacher, image, sha)["P4_S16"].equal(first)
    other = teacher_features(store, load_teacher("random:1", layers=["P4_S16"]), image, sha)["P4_S16"]
    assert not other.equal(first) and (store.stats.hits, store.stats.misses) == (1, 2)


def test_sam2_video_checkpoint(tmp_path):
    """The published SAM 2 checkpoints are of the video model; their image encoder is the teacher."""
    import transformers as tr
    hiera = dict(model_type="sam2_hiera_det_model", hidden_size=16, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[16, 32, 64, 128],
                 num_attention_heads_per_stage=[1, 2, 4, 8], global_attention_blocks=[3])
    vision = dict(backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=16)
    memory = dict.fromkeys(("memory_attention_hidden_size", "memory_encoder_hidden_size", "memory_encoder_output_channels", "mask_downsampler_embed_dim", "memory_fuser_embed_dim"), 16)
    model = tr.Sam2VideoModel(tr.Sam2VideoConfig(vision_config=vision, prompt_encoder_config=dict(hidden_size=16, image_size=64), **memory,
                                                 mask_decoder_config=dict(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16))).eval()
    model.save_pretrained(tmp_path)
    teacher, image = load_teacher(str(tmp_path)), torch.rand(1, 3, 64, 64)
    assert teacher.id.startswith("hf:sam2@") and teacher.layers == ["P2_S4", "P3_S8", "P4_S16", "P5_S32"]
    with torch.no_grad():
        assert teacher.encode(image)["P4_S16"].equal(model.vision_encoder(teacher.normalize(image)).fpn_hidden_states[-1])
    assert load_teacher(f"random:0:hf:{tmp_path}").layers == teacher.layers


@pytest.mark.gpu
def test_teacher_on_a_gpu(tmp_path):
    """Maps come from the device, features go to the store as CPU tensors, and agree with the CPU's."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image, store = torch.randint(0, 256, (3, 128, 96), dtype=torch.uint8), FeatureStore(tmp_path)
    cpu, gpu = (load_teacher("random:0:timm:repvit_m0_9", layers=["P4_S16"], device=d) for d in ("cpu", "cuda"))
    assert gpu.encode(image[None])["P4_S16"].is_cuda and gpu.weights_sha256 == cpu.weights_sha256
    a = teacher_features(store, gpu, image, "0" * 64, dtype="float32")["P4_S16"]
    assert a.device.type == "cpu" and torch.allclose(a, cpu.encode(image[None])["P4_S16"][0], rtol=1e-2, atol=1e-2 * a.abs().max())
