"""What lives, computed apart, is what it is among the rest, and what the shrunk network has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_slimga.surgery.analysis import running
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.proof.apart import pointwise_apart, pooled_apart
from tests.networks.checks import Ops, everything_replayed, random_mask, randomise, relative_error

POOLING = [
    nn.MaxPool1d(3, 2, 1),
    nn.MaxPool2d(3, 1, 1),
    nn.MaxPool2d(2, dilation=2),
    nn.MaxPool2d(3, 2, ceil_mode=True, return_indices=True),
    nn.MaxPool3d(3, 1, 1),
    nn.AvgPool1d(3, 1, 1),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
    nn.AvgPool3d(2, padding=1),
    nn.AdaptiveAvgPool2d((3, 2)),
    nn.AdaptiveAvgPool3d(2),
    nn.AdaptiveMaxPool2d(3, return_indices=True),
    nn.AdaptiveMaxPool3d(2),
]


def example(pooling: nn.Module, *sizes: int) -> Tensor:
    """Channels 1, 3 and 6 are constant."""
    space = int(next(c for c in type(pooling).__name__ if c.isdigit()))
    x = torch.randn(*sizes, 8, *[9] * space, dtype=torch.float64)
    for channel, value in ((1, 0.0), (3, 1.7), (6, -2.3)):
        x.select(len(sizes), channel).fill_(value)
    return x


LIVE = np.array([c not in (1, 3, 6) for c in range(8)])


@pytest.mark.parametrize("sizes", [(), (1,), (3,)], ids=["no batch", "one", "three"])
@pytest.mark.parametrize("pooling", POOLING, ids=str)
def test_pooled_apart_is_pooled(pooling: nn.Module, sizes: tuple[int, ...]) -> None:
    with Ops() as caught:
        pooling(example(pooling, *sizes))
    for func, args, wanted in caught.pooling:
        dim, seen = list(args[0].shape).index(len(LIVE)), []

        def run(func: Any, args: Any, seen: list[Tensor] = seen) -> Any:
            seen.append(args[0])
            return func(*args)

        found = pooled_apart(run, func, args, dim, LIVE)
        assert [t.shape[dim] for t in seen] == [LIVE.sum()]
        for a, b in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    assert caught.pooling


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_channel_that_is_not_constant_is_said(value: float) -> None:
    pooling = nn.MaxPool2d(3)
    x = example(pooling, 1)
    x[0, 3, 4, 4] = value
    with Ops() as caught:
        pooling(x)
    ((func, args, _),) = caught.pooling
    assert pooled_apart(lambda func, args: func(*args), func, args, 1, LIVE) is None


class Positions(nn.Module):
    """What it adds before it pools differs from place to place, in every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.register_buffer("positions", torch.randn(1, 1, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(self.first(x) + self.positions, 3, 1, 1)
        return self.second(y)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.Sigmoid(),
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(32, 4, 1),
    )


@pytest.mark.parametrize(("make", "shared", "times"), [(plain, True, 2), (Positions, False, 1)])
def test_both_networks_pool_once(
    make: Any, shared: bool, times: int, taken_over: list[bool]
) -> None:
    """And where that is not to be had, the outcome is the same."""
    model = make().double()
    randomise(model)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    taken_over.clear()
    with running(model), surgery.masked(keep):
        wanted = model(x)
    with running(model), Ops() as whole:
        model(x)
    with Ops() as caught:
        surgery.apply(keep)
    with running(model):
        assert relative_error(wanted, model(x)) < 1e-12
    sizes = [tuple(args[0].shape) for _, args, _ in caught.pooling]
    assert (tuple(whole.pooling[0][1][0].shape) in sizes) != shared
    assert taken_over == [True] * times


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("op", ["sigmoid", "sigmoid_", "silu_", "gelu", "pow", "leaky_relu", "lt"])
def test_pointwise_apart_is_the_same_as_in_the_shrunk_network(op: str, dim: int) -> None:
    packet = getattr(torch.ops.aten, op)
    func = packet.Tensor_Scalar if op == "pow" else packet.Scalar if op == "lt" else packet.default
    others = {"pow": (2,), "lt": (0.3,)}.get(op, ())
    x = torch.randn(7, 11, 13)
    live = np.random.Generator(np.random.PCG64(0)).random(x.shape[dim]) < 0.6
    small = x.index_select(dim, torch.from_numpy(np.flatnonzero(live)))
    wanted, shrunk, given = func(x.clone(), *others), func(small.clone(), *others), x.clone()
    found = pointwise_apart(func, (given, *others), dim, live)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(found.index_select(dim, torch.from_numpy(np.flatnonzero(live))), shrunk)
    assert (found is given) == op.endswith("_")
    torch.testing.assert_close(given, wanted if op.endswith("_") else x)


class Excited(nn.Module):
    """Squeeze and excitation of odd widths: the ends of its tensors are rounded otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 197, 3), nn.Conv2d(197, 193, 3)
        self.down, self.up = nn.Conv2d(197, 91, 1), nn.Conv2d(91, 197, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.first(x), inplace=True)
        scale = nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)), inplace=True)
        return self.last(x * self.up(scale).sigmoid())


def test_activations_do_not_part_the_networks(taken_over: list[bool]) -> None:
    surgery = ChannelSurgery(Excited(), torch.rand(1, 3, 7, 7))
    taken_over.clear()
    with everything_replayed():
        for seed in range(5):
            mask = random_mask(surgery, seed)
            trial = surgery._proof.trial(surgery._graph, mask.numpy())
            trial.muted(), trial.shrunk()
    assert taken_over == [True] * 4 * 5
