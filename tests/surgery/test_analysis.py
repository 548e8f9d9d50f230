"""Modes in which a network is traced, and what escapes from the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from lightning_slimga import ChannelSurgery
from lightning_slimga.surgery.analysis import running


class FlagInAnotherPlace(nn.Linear):
    def __init__(self) -> None:
        self.flags: dict[str, bool] = {}
        super().__init__(2, 2)

    @property
    def training(self) -> bool:
        return self.flags["training"]

    @training.setter
    def training(self, value: bool) -> None:
        self.flags["training"] = value


class FlagMirrored(nn.Linear):
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "training":
            super().__setattr__("mode", "train" if value else "eval")


class Frozen(nn.Module):
    """Its dropout never trains."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout().eval()

    def children(self) -> Iterator[nn.Module]:
        return iter(())


class Obstinate(nn.Linear):
    def train(self, mode: bool = True) -> Obstinate:
        return super().train(False)


def computed_statistics() -> nn.Module:
    """A batch norm whose statistics are a property of its class."""
    return register_parametrization(nn.BatchNorm1d(2), "running_mean", nn.Identity())


def modes(model: nn.Module) -> list[Any]:
    return [(module.training, getattr(module, "mode", None)) for module in model.modules()]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(2, 2),
        FlagInAnotherPlace(),
        FlagMirrored(2, 2),
        Frozen(),
        Obstinate(2, 2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modes_are_those_that_torch_sets(module: nn.Module, training: bool) -> None:
    model = nn.Sequential(nn.Dropout(), module).train(not training)
    before = modes(model)
    with running(model, training=training):
        found = modes(model)
    assert modes(model) == before
    assert found == modes(model.train(training))


def test_a_train_of_the_instance_is_called() -> None:
    model = nn.Sequential(nn.Dropout())
    model.train = lambda mode=True: nn.Module.train(model, False)  # type: ignore[method-assign]
    with running(model, training=True):
        assert not model[0].training


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), computed_statistics()])
def test_what_has_statistics_uses_them_while_others_train(norm: nn.Module) -> None:
    with running(nn.Sequential(norm, nn.Dropout()).train(), training=True):
        assert not norm.training
    with running(
        nn.Sequential(bare := nn.BatchNorm1d(2, track_running_stats=False)), training=True
    ):
        assert bare.training


class _Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class _Cycle:
    """Garbage that refers to itself: nobody holds it, and nothing in it."""

    def __init__(self, held: Tensor) -> None:
        self.held, self.myself = held, self


KEPT: list[Any] = []


@pytest.mark.parametrize(
    ("hold", "stays"),
    [
        (lambda y: partial(torch.add, y), True),
        (lambda y: _Slotted([{"features": (y[:, :3],)}]), True),
        (lambda y: lambda: y.detach(), True),
        (lambda y: iter([y]), True),
        (lambda y: KEPT.append(y), True),
        (lambda y: y.numpy(), True),
        (lambda y: _Cycle(y) and None, False),
    ],
)
def test_what_somebody_still_holds_stays_whole(hold: Callable[[Tensor], Any], stays: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            features = self.second(self.first(x).tanh())
            return self.last(features), hold(features)

    KEPT.clear()
    surgery = ChannelSurgery(Net(), torch.randn(3, 4))
    names = [layer.name for layer in surgery.layers]
    assert names == (["first"] if stays else ["first", "second"])
    assert stays == ("is still held" in str(surgery))
