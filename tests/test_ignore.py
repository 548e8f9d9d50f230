"""`ignore` means the same to everyone who takes it: a module's name stands for its submodules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery, SparsityCallback
from tests.fits import small_fit
from tests.fits.small_fit import fitted, prune


class Block(nn.Module):
    """A convolution with its norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Net(small_fit.Net):
    """Four blocks in two stages, and a head without any norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict()
        self.body["early"] = nn.Sequential(Block(2, 4), Block(4, 5))
        self.body["late"] = nn.Sequential(Block(5, 6), Block(6, 7))
        self.head = nn.ModuleDict({"out": nn.Linear(7, 4)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["late"](self.body["early"](x))
        return self.head["out"](x.mean((2, 3)))


def kept(patterns: Sequence[str], part: str) -> set[str]:
    """Blocks of which a part (or, for "any", one of both parts) is ignored, by the tree itself."""
    net = Net()
    ignored = {
        below
        for name, module in net.named_modules()
        for pattern in patterns
        if fnmatchcase(name, pattern)
        for below in module.modules()
    }
    return {
        name
        for name, module in net.named_modules()
        if isinstance(module, Block)
        for parts in ([module.conv, module.norm] if part == "any" else [getattr(module, part)],)
        if ignored & set(parts)
    }


BLOCKS = {f"body.{stage}.{i}" for stage in ("early", "late") for i in (0, 1)}


def block_of(name: str) -> str:
    return name.rsplit(".", 2 if name.endswith(".weight") else 1)[0]


@pytest.mark.parametrize(
    "patterns",
    [
        ("head",),
        ("body.early",),
        ("body.early", "head"),
        ("body.late.*", "head.out"),
        ("body.*.0",),
        ("body.early.0.norm", "body.late.1.conv"),
        ("*.norm", "head"),
        ("body",),
    ],
)
def test_the_same_patterns_everywhere(patterns: tuple[str, ...]) -> None:
    surgery = ChannelSurgery(Net(), torch.randn(2, 2, 6, 6), ignore=patterns)
    free = BLOCKS - kept(patterns, "any")
    assert {block_of(layer.name) for layer in surgery.layers} == free

    if free:
        pruned = prune(ignore=patterns, budget={"params": 0.95})
        fitted(Net(), pruned)
        assert pruned.plan is not None
        assert {block_of(layer) for layer in pruned.plan.summary["layers"]} == free

    moving = BLOCKS - kept(patterns, "norm")
    if moving:
        before, net = Net().state_dict(), Still()
        fitted(net, SparsityCallback(0.1, ignore=patterns), max_epochs=1)
        after = net.state_dict()
        gammas = [name for name in before if name.endswith("norm.weight")]
        moved = {block_of(name) for name in gammas if not torch.equal(before[name], after[name])}
        assert moved == moving


class Still(Net):
    """Only a penalty moves it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "use",
    [
        lambda ignore: ChannelSurgery(Net(), torch.randn(2, 2, 6, 6), ignore=ignore),
        lambda ignore: fitted(Net(), prune(ignore=ignore)),
        lambda ignore: fitted(Net(), SparsityCallback(0.1, ignore=ignore)),
        lambda ignore: fitted(Net(), SparsityCallback(0.1, include=["*", *ignore])),
    ],
    ids=["surgery", "prune", "sparsity", "include"],
)
def test_a_pattern_without_a_module_is_named(use: Callable[[list[str]], Any]) -> None:
    with pytest.raises(
        ValueError,
        match=r"`(ignore|include)` to hold patterns of module names, but 'tail' matches none of bo",
    ):
        use(["head", "tail"])


def test_a_compiled_part_goes_by_its_own_name() -> None:
    model = nn.Sequential()
    model.add_module("body", torch.compile(nn.Sequential(nn.Linear(3, 4)), backend="eager"))
    model.add_module("head", nn.Linear(4, 2))
    x = torch.randn(2, 3)
    assert ChannelSurgery(model, x).num_channels == 4
    assert ChannelSurgery(model, x, ignore="body.0").num_channels == 0
    assert ChannelSurgery(model, x, ignore="body").num_channels == 0
