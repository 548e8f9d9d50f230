"""Einsum runs other ops for other sizes: what it costs is known for every mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from tests.networks.checks import assert_exact, assert_macs_exact, random_mask, train_a_step


class Attention(nn.Module):
    """Attention whose heads lose the same channels each; nobody keeps their width."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.h = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.h, -1)
        q, k, v = (layer(x).view(shape) for layer in (self.q, self.k, self.v))
        scores = torch.softmax(torch.einsum("blhe,bshe->bhls", q, k) / 2, -1)
        return self.o(torch.einsum("bhls,bshd->blhd", scores, v).flatten(2))


class Mixed(nn.Module):
    """Two dimensions are summed over at once, and one that one operand alone has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 6)
        self.core = nn.Parameter(torch.randn(6, 6, 4) / 6)
        self.o = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.o(torch.einsum("ni,nj,ijk->nk", a, b, self.core))


@pytest.mark.parametrize("left", [1, 2, 3])
@pytest.mark.parametrize(("kind", "shape"), [(Attention, (2, 12, 16)), (Mixed, (3, 5))])
def test_macs_however_few_channels_are_left(
    kind: type[nn.Module], shape: tuple[int, ...], left: int
) -> None:
    model, x = kind().double(), torch.randn(shape, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert len(surgery.layers) > 1
    keep = torch.zeros(surgery.num_channels, dtype=torch.bool)
    for layer in surgery.layers:
        keep[layer.slice.start : layer.slice.start + left] = True
    for mask in (keep, random_mask(surgery, left, share=0.1)):
        assert_exact(surgery, x, mask)
        assert_macs_exact(surgery, x, mask)
    if left > 1:
        surgery.apply(keep)
        train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))


def test_surgery_down_to_one_channel() -> None:
    model, x = Mixed().double(), torch.randn(3, 5, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery, share=0.0)
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(x)
    surgery.apply(keep)
    assert torch.allclose(model(x), wanted, rtol=1e-12)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
