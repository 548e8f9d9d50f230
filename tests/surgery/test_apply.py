"""Surgery for good: all or nothing, and everything about a parameter survives."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery, SurgeryError
from lightning_slimga.surgery.transaction import Transaction
from tests.networks.checks import (
    assert_exact,
    assert_same,
    random_mask,
    snapshot,
    train_a_step,
)
from tests.networks.ready import ready
from tests.networks.zoo import two_layers


class _Fragile(nn.Module):
    """Runs at any width until it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.armed, self.factor = two_layers(), False, 0.0

    def forward(self, x: Tensor) -> Tensor:
        small = self.body[0].out_channels < 6
        if small and self.armed:
            raise RuntimeError("only the full width, please")
        return self.body(x) + (self.factor if small else 0.0)


def test_a_forward_that_fails_after_surgery_rolls_everything_back() -> None:
    model, x = _Fragile().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    optimizer = torch.optim.Adam(model.parameters())
    train_a_step(model, x, optimizer)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())

    model.armed = True
    with pytest.raises(SurgeryError, match="the small network fails: only the full width"):
        surgery.apply(keep, optimizers=[optimizer])
    model.armed, model.factor = False, 0.5
    with pytest.raises(SurgeryError, match=r"output \[0\] differs by .*cut: body\.0, body\.3"):
        surgery.apply(keep, optimizers=[optimizer])
    model.factor = 0.0
    assert_same(before, snapshot(model))
    _assert_same_state(state, optimizer.state_dict())


def test_a_failure_at_any_step_rolls_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, surgery, keep, x = ready()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    train_a_step(model, x, optimizer)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    order = [id(p) for p in optimizer.state]

    budget = 0
    original = Transaction.on_roll_back

    def failing(self: Transaction, undo: Callable[[], None]) -> None:
        nonlocal budget
        original(self, undo)
        budget -= 1
        if budget < 0:
            raise KeyboardInterrupt

    steps = 0
    while True:
        budget = steps
        with monkeypatch.context() as patch:
            patch.setattr(Transaction, "on_roll_back", failing)
            try:
                surgery.apply(keep, optimizers=[optimizer])
                break
            except KeyboardInterrupt:
                pass
        assert_same(before, snapshot(model))
        _assert_same_state(state, optimizer.state_dict())
        assert [id(p) for p in optimizer.state] == order
        steps += 1
    assert steps > 20
    assert model[0].out_channels == int(keep[:6].sum())


def _assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, old in a["state"].items():
        assert old.keys() == b["state"][key].keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b["state"][key][k]))
                   for k, v in old.items())  # fmt: skip


def test_gradients_attributes_layout_and_flags_survive() -> None:
    model, x = two_layers().to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8).double()
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    model(x).sum().backward()
    model[3].weight.decay = "none"
    model[1].weight.requires_grad_(False)
    gradient = model[3].weight.grad.clone()
    surgery.apply(keep)
    weight = model[3].weight
    assert weight.decay == "none"
    assert not model[1].weight.requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert torch.equal(weight.grad, gradient[keep[6:]][:, keep[:6]])
    assert isinstance(weight, nn.Parameter)


class _Tied(nn.Module):
    """An autoencoder whose two linear maps are one matrix, one of them through its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 9), nn.Linear(5, 9)
        self.b.weight = self.a.weight
        self.out = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x)) + torch.sigmoid(self.b(x))
        back = nn.functional.linear(hidden, self.b.weight.t())
        return self.out(torch.relu(self.a(back)))


def test_tied_weights_stay_tied() -> None:
    model, x = _Tied().double(), torch.randn(3, 5, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    surgery.apply(keep, optimizers=[optimizer])
    assert model.a.weight is model.b.weight
    assert model.a.weight.shape == (int(keep.sum()), 5)
    assert model.a.out_features == model.b.out_features == int(keep.sum())
    train_a_step(model, x, optimizer)
    assert model.a.weight is model.b.weight


def _normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 6, 3)), nn.Sigmoid(), wrap(nn.Conv2d(6, 8, 3)), nn.Flatten(),
        wrap(nn.Linear(8 * 16, 12)), nn.Tanh(), nn.Linear(12, 3),
    ).double()  # fmt: skip


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "old_weight_norm": _old_weight_norm,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_reparametrised_weights_are_exact_or_frozen(name: str) -> None:
    model, x = _normed(WRAPPERS[name]), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))
    if not surgery.num_channels:
        assert surgery.frozen
        return
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    surgery.apply(keep, optimizers=[optimizer])
    train_a_step(model, x, optimizer)
