"""Candidates may convolve in another memory format where nobody notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.running.calls import calls_from_example
from lightning_slimga.surgery.channels_last import channels_last, runs_channels_last
from tests.networks.checks import assert_same, randomise, snapshot

LAST = torch.channels_last


class Features(nn.Module):
    """Convolutions, and something done with what they return."""

    def __init__(self, then: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3))) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.norm(self.up(self.depthwise(self.first(x)).relu())).relu())


def works(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> bool:
    randomise(model)
    before = snapshot(model)
    x = torch.rand(*(shape or (2, 3, 6, 6)), dtype=dtype)
    found = runs_channels_last(model, calls_from_example(x))
    assert_same(before, snapshot(model))
    return found


def test_convolutions_run_in_channels_last_and_nothing_stays_of_it() -> None:
    model, x = Features(lambda x: x).eval(), torch.rand(2, 3, 6, 6)
    randomise(model)
    before, wanted = snapshot(model), model(x)
    with channels_last(model):
        found = model(x)
        assert found.is_contiguous(memory_format=LAST)
        assert all(weight.is_contiguous() for weight in model.parameters())
        torch.testing.assert_close(found, wanted)
    assert_same(before, snapshot(model))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert wanted.is_contiguous()
    assert torch.equal(model(x), wanted)


def test_it_holds_inside_of_what_was_named_also_after_a_failure() -> None:
    model = nn.ModuleDict({"tried": nn.Conv2d(3, 4, 3), "other": nn.Conv2d(3, 4, 3)})
    x = torch.rand(2, 3, 6, 6)
    with channels_last(model, ["tried"]):
        assert model["tried"](x).is_contiguous(memory_format=LAST)
        assert model["other"](x).is_contiguous()
        with pytest.raises(RuntimeError, match="channels"):
            model["tried"](torch.rand(2, 5, 6, 6))
        assert model["other"](x).is_contiguous()
        assert model["tried"](x).is_contiguous(memory_format=LAST)
    with channels_last(model, []):
        assert model["tried"](x).is_contiguous()


WORKS = {
    "mean": lambda x: x.mean((2, 3)),
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(len(x), -1),
    "pooled and viewed": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).view(len(x), -1),
    "in its own memory": lambda x: x.contiguous(),
}
FAILS = {
    "view": lambda x: x.view(len(x), -1),
    "as_strided": lambda x: x.as_strided((2, 6, 144), (6 * 144, 144, 1)).mean(2),
    "shown outside": lambda x: x,
    "shown in a container": lambda x: {"features": [x], "mean": x.mean((2, 3))},
    "strides": lambda x: x.mean((2, 3)) * x.stride(1),
    "drawn at random": lambda x: (x * torch.randn_like(x)).mean((2, 3)),
}
ASIDE = {
    "itself": lambda x: x,
    "a view": lambda x: x[0, :2],
    "a copy": lambda x: x[0].clone(),
    "in another library": lambda x: x.numpy(),
}


@pytest.mark.parametrize("way", WORKS)
def test_where_nobody_notices_it_is_taken(way: str) -> None:
    assert works(Features(WORKS[way]))


@pytest.mark.parametrize("way", FAILS)
def test_where_code_wants_the_usual_format_it_is_not(way: str) -> None:
    assert not works(Features(FAILS[way]))


@pytest.mark.parametrize("way", ASIDE)
def test_where_features_are_put_aside_it_is_not(way: str) -> None:
    aside: list[object] = []

    def then(x: Tensor) -> Tensor:
        aside.append(ASIDE[way](x))
        return x.mean((2, 3))

    assert not works(Features(then))


def test_where_what_is_put_aside_is_in_no_other_format_it_is_taken() -> None:
    aside: list[Tensor] = []

    def then(x: Tensor) -> Tensor:
        aside.append(x.mean((2, 3)))
        return aside[-1]

    assert works(Features(then))


def test_where_it_gains_nothing_it_is_not_taken() -> None:
    assert not works(nn.Linear(3, 4), 2, 3)
    assert not works(Features().double(), dtype=torch.float64)
