from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery, PruningPlan, load_pruned
from lightning_slimga.surgery.checkpoint import (
    PLANS_KEY,
    apply_plans,
    plans_of,
    read_plans,
    remember_plan,
    store_plans,
)

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width: int = 8, classes: int = 3, factor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3))) * self.factor


def pruned(model: nn.Module, keep: int) -> nn.Module:
    mask = torch.arange(model.conv.out_channels) < keep
    remember_plan(model, ChannelSurgery(model, X).apply(mask))
    return model


def saved(path: Path, model: nn.Module, **more: Any) -> Path:
    checkpoint = {"state_dict": model.state_dict(), **more}
    store_plans(checkpoint, model)
    torch.save(checkpoint, path)
    return path


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert torch.equal(one.eval()(X), other.eval()(X))


def test_a_pruned_file_comes_back_small(tmp_path: Path) -> None:
    small = pruned(Net(), 5)
    loaded = load_pruned(Net, saved(tmp_path / "a", small))
    assert loaded.conv.out_channels == loaded.norm.num_features == loaded.head.in_features == 5
    assert_same(loaded, small)
    assert len(plans_of(loaded)) == 1


def test_twice_pruned(tmp_path: Path) -> None:
    small = pruned(pruned(Net(), 6), 3)
    path = saved(tmp_path / "a", small)
    assert [p.summary["channels"] for p in read_plans(torch.load(path))] == [[8, 6], [6, 3]]
    loaded = load_pruned(Net, path)
    assert loaded.conv.out_channels == 3
    assert_same(loaded, small)


@pytest.mark.parametrize("start", [8, 6, 3])
def test_a_module_gets_the_plans_that_it_has_not_been_through(start: int) -> None:
    checkpoint: dict[str, Any] = {}
    store_plans(checkpoint, pruned(pruned(Net(), 6), 3))
    model = Net(start)
    apply_plans(model, read_plans(checkpoint))
    assert model.conv.weight.shape[0] == 3
    assert len(plans_of(model)) == 2


def test_a_full_size_file_loads_too(tmp_path: Path) -> None:
    full = Net()
    path = saved(tmp_path / "a", full)
    assert PLANS_KEY not in torch.load(path, weights_only=True)
    loaded = load_pruned(Net, path)
    assert_same(loaded, full)
    assert plans_of(loaded) == []


def test_hyper_parameters_of_the_file_and_of_the_caller(tmp_path: Path) -> None:
    hyper = {"classes": 5, "factor": 2.0, "unknown": "to this class"}
    path = saved(tmp_path / "a", pruned(Net(classes=5), 5), hyper_parameters=hyper)
    assert load_pruned(Net, path).factor == 2.0
    assert load_pruned(Net, path, factor=3.0).factor == 3.0


def test_a_class_that_takes_anything(tmp_path: Path) -> None:
    class Anything(Net):
        def __init__(self, **given: Any) -> None:
            super().__init__()
            self.given = given

    path = saved(tmp_path / "a", pruned(Net(), 5), hyper_parameters={"a": 1})
    assert load_pruned(Anything, path, b=2).given == {"a": 1, "b": 2}


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", pruned(Net(), 5))
    with pytest.raises(ValueError, match=r"a tensor 'conv.weight' of shape \(8, 2, 3, 3\).*\(9, 2"):
        load_pruned(Net, path, width=9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Net().state_dict(), r"has a 'state_dict' and .* got 'conv\.weight', .* more in '.*a'"),
        ({"model": {}}, "but got 'model' in"),
        ([1], "but got a list in"),
    ],
)
def test_a_file_that_is_no_checkpoint(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a")
    with pytest.raises(ValueError, match=rf"`checkpoint_path` to be .*{message}.*load_state_dict"):
        load_pruned(Net, tmp_path / "a")


def test_strict(tmp_path: Path) -> None:
    small = pruned(Net(), 5)
    state = {k: v for k, v in small.state_dict().items() if k != "head.bias"}
    checkpoint = {"state_dict": state}
    store_plans(checkpoint, small)
    torch.save(checkpoint, tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"Missing key.*head.bias"):
        load_pruned(Net, tmp_path / "a")
    assert load_pruned(Net, tmp_path / "a", strict=False).conv.out_channels == 5


def test_hooks_of_the_class_see_the_file_before_the_weights(tmp_path: Path) -> None:
    class Hooked(Net):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.seen = (checkpoint["mine"], self.conv.out_channels)

    loaded = load_pruned(Hooked, saved(tmp_path / "a", pruned(Net(), 5), mine=7))
    assert loaded.seen == (7, 5)


def test_a_device(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", pruned(Net(), 5))
    loaded = load_pruned(Net, path, map_location=torch.device("cpu"))
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}


def test_copies_of_a_module_know_its_plans() -> None:
    small = pruned(Net(), 5)
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        (plan,) = plans_of(copied)
        assert isinstance(plan, PruningPlan)
        assert plan.apply(Net()).state_dict() == plans_of(small)[0].state_dict()


def test_plans_are_plain_data(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", pruned(Net(), 5))
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {"state_dict", PLANS_KEY}
    full = Net()
    apply_plans(full, read_plans(checkpoint))
    assert full.conv.out_channels == 5
