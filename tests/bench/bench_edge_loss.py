"""The edge chapter's loss step (FGD + edge, forward and backward) against a direct transcription of the published formulae.

Batch 4, features 256×64×64, edge maps 256², 8 boxes an image. Both are run in turn on one thread, timed by the processor time they use so that a busy machine does not
distort the ratio; the ratio of medians must be at most 1.
"""
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from vfmkd_nb.edge.losses import EdgeLoss, FGDLoss

B, C, H, W, SIDE, IMG = 4, 256, 64, 64, 256, (1024, 1024)
ROUNDS = 9


class Transcription(nn.Module):
    """FGD as its formulae read (Yang et al., 2022): a loop over boxes, and every factor multiplied onto the features."""

    def __init__(self, loss: FGDLoss):
        super().__init__()
        self.p = loss

    def attention(self, x):
        n, c, h, w = x.shape
        value = x.abs()
        s = (h * w * F.softmax((value.mean(1, keepdim=True) / self.p.temp).view(n, -1), 1)).view(n, h, w)
        return s, c * F.softmax(value.mean(2).mean(2) / self.p.temp, 1)

    def pool(self, x, conv):
        n, c, h, w = x.shape
        mask = F.softmax(conv(x).view(n, 1, h * w), 2).unsqueeze(-1)
        return torch.matmul(x.view(n, c, h * w).unsqueeze(1), mask).view(n, c, 1, 1)

    def forward(self, student, teacher, boxes, img_hw):
        n, c, h, w = student.shape
        s_t, c_t = self.attention(teacher)
        s_s, c_s = self.attention(student)
        fg, bg = torch.zeros(n, h, w), torch.ones(n, h, w)
        for i in range(n):
            for x1, y1, x2, y2 in boxes[i]:
                a, b = int((x1 / img_hw[1] * w).floor()), int((x2 / img_hw[1] * w).ceil())
                t, u = int((y1 / img_hw[0] * h).floor()), int((y2 / img_hw[0] * h).ceil())
                area = 1.0 / ((u + 1 - t) * (b + 1 - a))
                fg[i, t:u + 1, a:b + 1] = torch.maximum(fg[i, t:u + 1, a:b + 1], torch.tensor(area))
            bg[i] = torch.where(fg[i] > 0, 0.0, 1.0)
            if bg[i].sum():
                bg[i] /= bg[i].sum()
        root = lambda v: torch.sqrt(v)
        def part(x, m):
            return x * root(s_t).unsqueeze(1) * root(c_t)[:, :, None, None] * root(m).unsqueeze(1)
        l_fg = F.mse_loss(part(student, fg), part(teacher, fg), reduction="sum") / n
        l_bg = F.mse_loss(part(student, bg), part(teacher, bg), reduction="sum") / n
        l_att = (c_s - c_t).abs().sum() / n + (s_s - s_t).abs().sum() / n
        out_s = student + self.p.channel_add_conv_s(self.pool(student, self.p.conv_mask_s))
        out_t = teacher + self.p.channel_add_conv_t(self.pool(teacher, self.p.conv_mask_t))
        l_rel = F.mse_loss(out_s, out_t, reduction="sum") / n
        return self.p.alpha_fgd * l_fg + self.p.beta_fgd * l_bg + self.p.gamma_fgd * l_att + self.p.lambda_fgd * l_rel


def edge_transcription(logits, target):
    """Masked BCE and Dice per image, as the formulae read."""
    mask = F.max_pool2d(target[:, None], 3, 1, 1)[:, 0]
    bce, dice = [], []
    for x, t, m in zip(logits, target, mask):
        bce.append((F.binary_cross_entropy_with_logits(x, t, reduction="none") * m).sum() / m.sum().clamp(min=1))
        p = x.sigmoid()
        dice.append(1 - (2 * (p * t * m).sum() + 1e-6) / ((p * m).sum() + (t * m).sum() + 1e-6))
    return 0.5 * torch.stack(bce).mean() + 0.5 * torch.stack(dice).mean()


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loss = FGDLoss(C, C)
    direct, edge = Transcription(loss), EdgeLoss()
    teacher, student = torch.randn(B, C, H, W), torch.randn(B, C, H, W, requires_grad=True)
    corner = torch.rand(B, 8, 2) * 800
    boxes = list(torch.cat([corner, corner + 20 + 200 * torch.rand(B, 8, 2)], 2))
    target, logits = (torch.rand(B, SIDE, SIDE) > 0.95).float(), torch.randn(B, SIDE, SIDE, requires_grad=True)

    def ours():
        return loss(student, teacher, boxes, IMG)["total"] + edge(logits, target, True)["total"]

    def theirs():
        return direct(student, teacher, boxes, IMG) + edge_transcription(logits, target)

    a, b = ours(), theirs()
    assert torch.allclose(a, b, rtol=1e-5), (a.item(), b.item())

    def step(f):
        student.grad = logits.grad = None
        loss.zero_grad()
        begin = time.process_time()
        f().backward()
        return time.process_time() - begin

    for f in (ours, theirs):
        step(f)
    times = [(step(ours), step(theirs)) for _ in range(ROUNDS)]
    mine, literal = (sorted(t)[ROUNDS // 2] for t in zip(*times))
    print(f"edge loss step: ours {mine * 1e3:.1f} ms, transcription {literal * 1e3:.1f} ms, ratio {mine / literal:.2f} (must be ≤ 1.00)")
    return int(mine / literal > 1)


if __name__ == "__main__":
    sys.exit(main())
