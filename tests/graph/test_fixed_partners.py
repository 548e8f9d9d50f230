"""What meets constants or one fixed width stays; everything around it goes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    random_mask,
    randomise,
    train_a_step,
)


class Padded(nn.Module):
    """A block whose shortcut gets zeros in front of and behind its channels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.added = (out - width) // 2

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return torch.relu(self.body(x) + short)


class AttentionPool(nn.Module):
    """Attention of the mean to all positions, by torch's own function (as in CLIP)."""

    def __init__(self, positions: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(positions + 1, width) / 4)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.c, self.num_heads = nn.Linear(width, out), heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.place[:, None]
        pooled, _ = F.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1], self.num_heads, None,
            torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None, False, 0.0,
            self.c.weight, self.c.bias, self.training, need_weights=False,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )  # fmt: skip
        return pooled.squeeze(0)


def _check(model: nn.Module, example: Tensor, sizes: list[int]) -> None:
    randomise(model)
    before = sum(p.numel() for p in model.parameters())
    surgery = ChannelSurgery(model, example)
    assert [layer.num_channels for layer in surgery.layers] == sizes
    assert surgery.params(random_mask(surgery, share=0.0)) < 0.5 * before
    keep = random_mask(surgery)
    assert_exact(surgery, example, keep)
    assert_macs_exact(surgery, example, keep)
    surgery.apply(keep)
    train_a_step(model, example, torch.optim.SGD(model.parameters(), lr=0.01))


def test_channels_that_meet_padding_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), Padded(8, 16), Padded(16, 32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    ).double()  # fmt: skip
    _check(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), [8, 16, 32])


def test_attention_pooling_keeps_its_width() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 3, 2, 1),
        nn.ReLU(), AttentionPool(16, 12, 3, 24), nn.ReLU(), nn.Linear(24, 3),
    ).double()  # fmt: skip
    _check(model, torch.randn(2, 3, 16, 16, dtype=torch.float64), [24, 24])
