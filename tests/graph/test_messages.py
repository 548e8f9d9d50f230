"""Nodes that read and write each other, and experts that see some of the tokens each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from tests.networks.checks import assert_exact, assert_macs_exact, random_mask, train_a_step

Pass = Callable[[Tensor, Tensor], Tensor]


def _wide(x: Tensor, index: Tensor) -> Tensor:
    return index.unsqueeze(-1).repeat(1, x.shape[-1])


def _softmax(x: Tensor, edges: Tensor) -> Tensor:
    """Attention over the edges that arrive at a node, one weight for each channel."""
    at = edges[1].view(-1, 1).expand(-1, x.size(1))
    score = x.index_select(0, edges[0])
    largest = x.new_zeros(x.shape).scatter_reduce_(0, at, score, "amax", include_self=False)
    weight = (score - largest.gather(0, at)).exp()
    total = torch.zeros_like(x).scatter_add_(0, at, weight)
    mixed = weight / total.index_select(0, edges[1]) * score
    return torch.zeros_like(x).index_add_(0, edges[1], mixed)


PASSES: dict[str, Pass] = {
    "sum": lambda x, e: x.new_zeros(x.shape).index_add_(0, e[1], x[e[0]]),
    "mean": lambda x, e: x.scatter_reduce(0, _wide(x, e[1]), x[e[0]], "mean", include_self=False),
    "max": lambda x, e: torch.zeros_like(x).index_reduce(0, e[1], x[e[0]], "amax"),
    "put": lambda x, e: torch.zeros_like(x).index_put((e[1],), x[e[0]], accumulate=True),
    "softmax": _softmax,
}


class Graph(nn.Module):
    """Three linear layers with messages between them."""

    def __init__(self, way: Pass) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.way(torch.tanh(self.a(x)), edges)
        return self.c(torch.sigmoid(self.way(torch.relu(self.b(x)), edges)))


@pytest.mark.parametrize("name", PASSES)
def test_channels_go_along_with_messages(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 10, (2, 40), generator=generator)
    model = Graph(PASSES[name]).double()
    example = (torch.randn(10, 8, dtype=torch.float64), edges)
    surgery = ChannelSurgery(model, example)
    assert [layer.num_channels for layer in surgery.layers] == [16, 12]
    keep = random_mask(surgery)
    assert_exact(surgery, example, keep)
    assert_exact(surgery, (torch.randn_like(example[0]), edges.flip(0)), keep)
    assert_macs_exact(surgery, example, keep)
    surgery.apply(keep)
    train_a_step(model, example, torch.optim.SGD(model.parameters(), lr=0.01))


class Experts(nn.Module):
    """Two experts, of which each sees some of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.up = nn.Parameter(torch.randn(2, 16, 32) / 4)
        self.down = nn.Parameter(torch.randn(2, 32, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x, ends = self.first(x), torch.tensor([6, 16], dtype=torch.int32)
        inner = torch.relu(torch._grouped_mm(x, self.up, offs=ends))
        return self.last(torch._grouped_mm(inner, self.down, offs=ends))


def test_experts_lose_neighbouring_channels() -> None:
    model, x = Experts(), torch.randn(16, 8)
    try:
        model(x)
    except (AttributeError, RuntimeError):
        pytest.skip("this version of torch has no grouped products on a CPU")
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == [4, 8, 4]  # fours of float32
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    assert_macs_exact(surgery, x, keep)
    surgery.apply(keep)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
