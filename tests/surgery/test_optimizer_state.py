"""After surgery optimizers go on exactly as they would on a small network built by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn, optim

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import assert_same, random_mask, randomise, snapshot

Slices = dict[str, tuple[str | None, ...]]


class Net(nn.Module):
    """Two convolutions and a head, of any width."""

    cuts: ClassVar[Slices] = {
        "conv1.weight": ("conv1", None),
        "conv1.bias": ("conv1",),
        "bn1": ("conv1",),
        "conv2.weight": ("conv2", "conv1"),
        "bn2": ("conv2",),
        "fc.weight": (None, "conv2"),
        "fc.bias": (None,),
    }

    def __init__(self, conv1: int = 6, conv2: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, conv1, 3), nn.BatchNorm2d(conv1)
        self.conv2, self.bn2 = nn.Conv2d(conv1, conv2, 3, bias=False), nn.BatchNorm2d(conv2)
        self.fc = nn.Linear(conv2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class MLP(nn.Module):
    """Matrices only, which is what Muon takes."""

    cuts: ClassVar[Slices] = {
        "fc1.weight": ("fc1", None),
        "fc2.weight": ("fc2", "fc1"),
        "fc3.weight": (None, "fc2"),
    }

    def __init__(self, fc1: int = 6, fc2: int = 8) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3 * 36, fc1, bias=False)
        self.fc2 = nn.Linear(fc1, fc2, bias=False)
        self.fc3 = nn.Linear(fc2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


def _steps(model: nn.Module, optimizer: optim.Optimizer, count: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(count):
        x = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(4, (5,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _slice(name: str, tensor: Tensor, cuts: Slices, kept: dict[str, Tensor]) -> Tensor:
    layers = cuts.get(name) or cuts.get(name.split(".")[0], ())
    for dim, layer in enumerate(layers):
        if layer is not None and tensor.dim() > dim:
            tensor = tensor[(slice(None),) * dim + (kept[layer],)]
    return tensor.detach().clone()


def _small_by_hand(
    full: nn.Module, kept: dict[str, Tensor], optimizer: optim.Optimizer, make: Callable[..., Any]
) -> tuple[nn.Module, optim.Optimizer]:
    """The same class built narrow, its weights and optimizer state indexed out by hand."""
    cuts = type(full).cuts
    small = type(full)(*(len(indices) for indices in kept.values())).double()
    small.load_state_dict({k: _slice(k, v, cuts, kept) for k, v in full.state_dict().items()})
    other = make(small.parameters())
    for (name, old), new in zip(full.named_parameters(), small.parameters(), strict=True):
        other.state[new] = {
            key: _slice(name, value, cuts, kept)
            if isinstance(value, Tensor) and value.shape == old.shape
            else (value.clone() if isinstance(value, Tensor) else value)
            for key, value in optimizer.state[old].items()
        }
    return small, other


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], optim.Optimizer]] = {
    "sgd": partial(optim.SGD, lr=0.05),
    "sgd_momentum": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd_nesterov": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, lr=1e-2),
    "adam_foreach": partial(optim.Adam, lr=1e-2, foreach=True),
    "adam_fused": partial(optim.Adam, lr=1e-2, fused=True),
    "adamw_amsgrad": partial(optim.AdamW, lr=1e-2, amsgrad=True),
    "nadam": partial(optim.NAdam, lr=1e-2),
    "radam": partial(optim.RAdam, lr=1e-2),
    "rmsprop": partial(optim.RMSprop, lr=1e-2, momentum=0.5, centered=True),
    "adagrad": partial(optim.Adagrad, lr=1e-2),
    "adadelta": partial(optim.Adadelta),
    "rprop": partial(optim.Rprop),
    "asgd": partial(optim.ASGD),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["muon"] = partial(optim.Muon, lr=1e-2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_a_small_network_built_by_hand(name: str) -> None:
    make = OPTIMIZERS[name]
    full = (MLP if name == "muon" else Net)().double()
    randomise(full)
    optimizer = make(full.parameters())
    _steps(full, optimizer, 3, seed=1)

    surgery = ChannelSurgery(full, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    keep = random_mask(surgery)
    kept = {layer.name: torch.where(keep[layer.slice])[0] for layer in surgery.layers}
    small, other = _small_by_hand(full, kept, optimizer, make)

    surgery.apply(keep, optimizers=[optimizer])
    assert _steps(full, optimizer, 5, seed=2) == pytest.approx(_steps(small, other, 5, 2), rel=1e-9)
    for (key, a), b in zip(full.state_dict().items(), small.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=key)


def _surgery() -> tuple[Net, ChannelSurgery, Tensor]:
    model = Net().double()
    surgery = ChannelSurgery(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    return model, surgery, random_mask(surgery)


def test_every_live_parameter_is_in_its_old_place_and_none_twice() -> None:
    model, surgery, keep = _surgery()
    weights = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    names = {p: n for n, p in model.named_parameters()}
    groups = [
        {"params": vectors, "weight_decay": 0.0, "tag": "vectors"},
        {"params": weights, "lr": 0.5},
    ]
    optimizer = optim.SGD(groups, lr=0.1, momentum=0.9)
    before = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    lists = [id(group["params"]) for group in optimizer.param_groups]
    _steps(model, optimizer, 1, seed=0)

    surgery.apply(keep, optimizers=[optimizer])
    live = dict(model.named_parameters())
    for group, wanted in zip(optimizer.param_groups, before, strict=True):
        assert all(p is live[n] for p, n in zip(group["params"], wanted, strict=True))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in live.values())
    assert lists == [id(group["params"]) for group in optimizer.param_groups]
    assert optimizer.param_groups[0]["tag"] == "vectors"
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert {id(p) for p in optimizer.state} == set(held)
    state = optimizer.state[live["conv1.weight"]]["momentum_buffer"]
    assert state.shape == live["conv1.weight"].shape


def test_frozen_and_unlisted_parameters_stay_out_of_the_optimizer() -> None:
    model, surgery, keep = _surgery()
    model.bn1.requires_grad_(False)
    optimizer = optim.AdamW(model.conv2.parameters(), lr=0.1)
    surgery.apply(keep, optimizers=[optimizer])
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model.conv2.weight)]
    assert not model.bn1.weight.requires_grad
    assert model.conv1.weight.requires_grad


def test_several_optimizers_and_wrappers() -> None:
    class Wrapper:
        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.optimizer = optimizer

    model, surgery, keep = _surgery()
    first = optim.SGD(model.conv1.parameters(), lr=0.1)
    second = optim.Adam([*model.conv2.parameters(), *model.fc.parameters()])
    surgery.apply(keep, optimizers=[Wrapper(first), second])
    assert first.param_groups[0]["params"][0] is model.conv1.weight
    assert second.param_groups[0]["params"][1] is model.fc.weight


def test_a_scheduler_keeps_working() -> None:
    model, surgery, keep = _surgery()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    surgery.apply(keep, optimizers=[optimizer])
    _steps(model, optimizer, 1, seed=0)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_checkpoint_of_the_optimizer_loads_after_surgery() -> None:
    model, surgery, keep = _surgery()
    optimizer = optim.Adam(model.parameters())
    _steps(model, optimizer, 2, seed=0)
    surgery.apply(keep, optimizers=[optimizer])
    saved = optimizer.state_dict()
    fresh = optim.Adam(model.parameters())
    fresh.load_state_dict(saved)
    for p in model.parameters():
        assert torch.equal(fresh.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])


def test_state_of_another_shape_starts_anew_with_a_warning() -> None:
    model, surgery, keep = _surgery()
    optimizer = optim.Adafactor(model.parameters(), lr=1e-2)
    _steps(model, optimizer, 2, seed=0)
    with pytest.warns(UserWarning, match=r"anew for: conv1\.weight \('row_var'.*, fc\.weight \("):
        surgery.apply(keep, optimizers=[optimizer])
    assert model.conv1.weight not in optimizer.state
    _steps(model, optimizer, 2, seed=1)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_leaves_everything_as_it_was() -> None:
    model, surgery, keep = _surgery()
    optimizer = optim.Adafactor(model.parameters(), lr=1e-2)
    _steps(model, optimizer, 2, seed=0)
    before, held = snapshot(model), dict(optimizer.state)
    with pytest.raises(
        UserWarning, match="Adafactor keeps state"
    ):  # warnings are errors in this suite
        surgery.apply(keep, optimizers=[optimizer])
    assert_same(before, snapshot(model))
    assert held == dict(optimizer.state)


def test_lbfgs_is_refused() -> None:
    model, surgery, keep = _surgery()
    before = snapshot(model)
    with pytest.raises(TypeError, match="LBFGS, which keeps one flat history"):
        surgery.apply(keep, optimizers=[optim.LBFGS(model.parameters())])
    assert_same(before, snapshot(model))


def test_something_that_is_no_optimizer_is_refused() -> None:
    _, surgery, keep = _surgery()
    with pytest.raises(TypeError, match="`optimizers` to hold torch optimizers, but got int"):
        surgery.apply(keep, optimizers=[3])
