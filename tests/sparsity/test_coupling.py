from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_slimga.sparsity.coupling import coupled_channels
from lightning_slimga.surgery.channel_surgery import ChannelSurgery


class Residual(nn.Module):
    """stem -> (+ branch) -> head: stem and the branch's end live and die together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.inner = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
        self.end = nn.Sequential(nn.Conv2d(5, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.head = nn.Linear(3, 2)
        self.last = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.end(self.inner(x))
        return self.last(self.head(x.mean((2, 3))))


def test_what_an_addition_ties_has_one_number() -> None:
    net = Residual()
    surgery = ChannelSurgery(net, torch.randn(2, 1, 6, 6))
    gammas = [net.stem[1].weight, net.inner[1].weight, net.end[1].weight, net.last.weight]

    stem, inner, end, last = coupled_channels(surgery, gammas).split([3, 5, 3, 2])

    assert torch.equal(stem, end)
    # Outputs cannot go, so each γ of the last norm stands for itself.
    assert len({*stem.tolist(), *inner.tolist(), *last.tolist()}) == 3 + 5 + 2
    assert sorted({*stem.tolist(), *inner.tolist(), *last.tolist()}) == list(range(10))


def test_a_factor_outside_the_network_stands_for_itself() -> None:
    net = Residual()
    surgery = ChannelSurgery(net, torch.randn(2, 1, 6, 6))
    channel = coupled_channels(surgery, [nn.Parameter(torch.ones(2)), net.stem[1].weight])
    assert sorted(channel.tolist()) == [0, 1, 2, 3, 4]


def test_no_factors() -> None:
    assert coupled_channels(ChannelSurgery(Residual(), torch.randn(2, 1, 6, 6)), []).shape == (0,)
