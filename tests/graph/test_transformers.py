"""Attention in its usual forms: whole heads go where the module keeps their number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import assert_exact, assert_macs_exact, random_mask, train_a_step


class Attention(nn.Module):
    """Heads with a bias per head, one or three projections, fused or by hand."""

    def __init__(self, width: int, heads: int, size: int, *, fused: bool, joint: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, size, heads * size
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * heads * size) if joint else None
        if not joint:
            self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(heads, 5, 5))
        self.proj = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.qkv is not None:
            qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            shape = (n, t, -1, self.head_dim)
            q, k, v = (m(x).view(shape).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5 + self.bias
            mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, t, self.attn_dim))


class Block(nn.Module):
    """Pre-norm attention and a gated feed-forward layer."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention
        self.up, self.down = nn.Linear(width, 2 * 10), nn.Linear(10, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        gate, value = self.up(self.norm2(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * value)
        return self.head(x[:, 0])


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("heads", "size"), [(4, 3), (3, 4), (6, 6)])
def test_whole_heads_and_feed_forward_widths_go(
    heads: int, size: int, fused: bool, joint: bool
) -> None:
    model = Block(Attention(12, heads, size, fused=fused, joint=joint), 12).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert sorted(layer.num_channels for layer in surgery.layers) == sorted([heads, 10])
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    assert_macs_exact(surgery, x, keep)
    surgery.apply(keep)
    assert model.attention.attn_dim == size * model.attention.num_heads
    assert model.attention.num_heads == len(model.attention.bias) < heads
    train_a_step(model, x, torch.optim.AdamW(model.parameters()))


def test_the_residual_stream_goes_only_where_approximate_is_allowed() -> None:
    model = Block(Attention(12, 4, 3, fused=True, joint=True), 12).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    model.stem = nn.Linear(7, 12).double()
    network = nn.Sequential(model.stem, model)
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    assert len(ChannelSurgery(network, x).layers) == 2
    surgery = ChannelSurgery(network, x, allow_approximate=True)
    assert sorted(layer.num_channels for layer in surgery.layers) == [4, 10, 12]
    keep = random_mask(surgery)
    surgery.apply(keep)
    assert model.norm1.normalized_shape == (model.stem.out_features,)
    assert model.stem.out_features < 12
    train_a_step(network, x, torch.optim.AdamW(network.parameters()))
