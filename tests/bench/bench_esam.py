"""Side by side: the encoder at 1024 px with fused and with explicit attention (≥ 2×), and ten boxes in one call against ten calls that each encode (≥ 5×)."""
import sys
import time
from statistics import median

import torch
from torch import nn

from vfmkd_nb.esam.model import efficient_sam_vitt

torch.set_num_threads(1)


class Explicit(nn.Module):
    """Attention as the official code writes it: the whole matrix, softmax, product."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.qkv, self.proj, self.heads = attention.qkv, attention.proj, attention.num_heads

    def forward(self, x, **_):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(slow, fast, repeat: int) -> float:
    """Median of slow / fast, interleaved."""
    return median(seconds(slow) / seconds(fast) for _ in range(repeat))


@torch.inference_mode()
def main() -> int:
    fused, explicit = efficient_sam_vitt().eval(), efficient_sam_vitt().eval()
    explicit.load_state_dict(fused.state_dict())
    for block in explicit.image_encoder.blocks:
        block.attn = Explicit(block.attn)
    image = torch.rand(1, 3, 1024, 1024)
    assert (fused.encode(image) - explicit.encode(image)).abs().max() < 1e-3
    encoder = ratio(lambda: explicit.encode(image), lambda: fused.encode(image), 3)
    points, labels = torch.rand(1, 10, 2, 2).sort(2).values * 1000, torch.tensor([2, 3]).expand(1, 10, 2)
    one_by_one = lambda: [fused(image, points[:, k:k + 1], labels[:, k:k + 1]) for k in range(10)]
    boxes = ratio(one_by_one, lambda: fused(image, points, labels), 1)
    print(f"encoder, 1024 px: fused attention {encoder:.2f}× the explicit form (bound 2); ten boxes at once {boxes:.2f}× ten calls (bound 5); processor time, one thread")
    return int(encoder < 2 or boxes < 5)


if __name__ == "__main__":
    sys.exit(main())
