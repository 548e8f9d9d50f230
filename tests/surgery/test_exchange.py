"""References to parameters survive a surgery: in lists, caches, hooks, optimizers of any kind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from tests.networks.checks import assert_same, random_mask, snapshot


def network(*widths: int) -> nn.Sequential:
    """Linear layers and batch norms, in float64."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2)).double()


def cut(model: nn.Module, x: Tensor, *optimizers: Any) -> Any:
    surgery = ChannelSurgery(model, x)
    return surgery.apply(random_mask(surgery), optimizers=optimizers)


def step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(x).pow(2).mean().backward()
    optimizer.step()


def test_references_stay_good() -> None:
    model, x = network(6, 10, 12), torch.randn(5, 6, dtype=torch.float64)
    by_name, listed = dict(model.named_parameters()), [model[0].weight]
    statistics = model[1].running_mean
    held: Callable[[], Tensor] = lambda: by_name["4.weight"]  # noqa: E731
    cut(model, x)
    assert all(by_name[name] is parameter for name, parameter in model.named_parameters())
    assert listed[0] is model[0].weight
    assert held() is model[4].weight
    assert statistics is model[1].running_mean
    assert model[0].weight.shape[0] == model[0].out_features < 10


@pytest.mark.parametrize("refused", [False, True])
def test_hooks_go_on_and_can_be_removed(refused: bool) -> None:
    model, x = network(6, 10), torch.randn(5, 6, dtype=torch.float64)
    seen: list[Any] = []
    on_gradient = model[0].weight.register_hook(lambda g: seen.append(tuple(g.shape)))
    after = model[0].weight.register_post_accumulate_grad_hook(lambda _: seen.append("after"))
    reference = weakref.ref(model[0].weight) if refused else None  # torch exchanges no such tensor
    cut(model, x)
    assert reference is None or reference() is not model[0].weight
    model(x).sum().backward()
    assert seen == [tuple(model[0].weight.shape), "after"]
    on_gradient.remove()
    after.remove()
    model(x).sum().backward()
    assert len(seen) == 2


@pytest.mark.parametrize("refused", [False, True])
def test_gradients_and_graphs_of_before(refused: bool) -> None:
    model, x = network(6, 10), torch.randn(5, 6, dtype=torch.float64)
    alive = model(x).sum()  # a graph that nobody has run backward
    model(x).sum().backward()
    whole = model[0].weight.grad.clone()
    references = [weakref.ref(p) for p in model.parameters()] if refused else []
    plan = cut(model, x)
    kept = plan.tensors["0.weight"].kept[0]
    assert torch.equal(model[0].weight.grad, whole[kept])
    model.zero_grad()
    model(x).sum().backward()
    assert model[0].weight.grad.shape == model[0].weight.shape
    del alive, references


@pytest.mark.parametrize("refused", [False, True])
def test_a_failure_leaves_everything_as_it_was(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(6, 10, 8), torch.randn(5, 6, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, x, optimizer)
    seen: list[int] = []
    model[0].weight.register_hook(lambda g: seen.append(len(g)))
    references = [weakref.ref(p) for p in model.parameters()] if refused else []
    before, held = snapshot(model), [p for g in optimizer.param_groups for p in g["params"]]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in held]

    def fail(*_: Any) -> None:
        raise ArithmeticError("at the very end")

    surgery = ChannelSurgery(model, x)
    monkeypatch.setattr("lightning_slimga.surgery.optimizer_state._cut_state", fail)
    with pytest.raises(ArithmeticError, match="at the very end"):
        surgery.apply(random_mask(surgery), optimizers=[optimizer])
    assert_same(before, snapshot(model))
    now = [p for g in optimizer.param_groups for p in g["params"]]
    assert all(a is b for a, b in zip(held, now, strict=True))
    pairs = zip(moments, held, strict=True)
    assert all(torch.equal(moment, optimizer.state[p]["exp_avg"]) for moment, p in pairs)
    model(x).sum().backward()
    assert seen == [10]
    del references


class Wrapped(torch.optim.Optimizer):
    """Keeps another optimizer that shares its groups, and a state of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.inside = {"it": [torch.optim.Adam(self.param_groups)]}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("slow", p.detach().clone())
        self.inside["it"][0].step()


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_optimizers_that_nobody_names_are_found(told: bool, refused: bool) -> None:
    model, x = network(6, 10), torch.randn(5, 6, dtype=torch.float64)
    outer = Wrapped(model.parameters())
    step(model, x, outer)
    step(model, x, outer)
    inner = outer.inside["it"][0]
    whole = inner.state[model[0].weight]["exp_avg"].clone()
    slow = outer.state[model[0].weight]["slow"].clone()
    references = [weakref.ref(p) for p in model.parameters()] if refused else []
    plan = cut(model, x, *[outer] * told)
    kept = plan.tensors["0.weight"].kept[0]
    assert torch.equal(inner.state[model[0].weight]["exp_avg"], whole[kept])
    assert torch.equal(outer.state[model[0].weight]["slow"], slow[kept])
    for optimizer in (outer, inner):
        live = {id(p) for p in model.parameters()}
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == live
        assert {id(p) for p in optimizer.state} == live
    step(model, x, outer)
    del references


class Preconditioned(torch.optim.Optimizer):
    """Keeps a matrix of rows by rows for each weight, and a moment for each entry."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if p.dim() == 2:
                state.setdefault("rows", torch.eye(len(p), dtype=p.dtype))
                p.data -= 0.1 * torch.linalg.solve(state["rows"], p.grad)
            else:
                state.setdefault("moment", torch.zeros_like(p)).add_(p.grad)


@pytest.mark.parametrize("widths", [(6, 10, 10), (10, 10, 10)])
def test_a_square_weights_preconditioner_is_no_state_by_entry(widths: tuple[int, ...]) -> None:
    model, x = network(*widths), torch.randn(5, widths[0], dtype=torch.float64)
    optimizer = Preconditioned(model.parameters())
    step(model, x, optimizer)
    moment = optimizer.state[model[1].weight]["moment"].clone()
    with pytest.warns(UserWarning, match=r"starts anew for: .*3.weight \('rows' of shape"):
        plan = cut(model, x, optimizer)
    assert model[3].weight not in optimizer.state
    kept = plan.tensors["1.weight"].kept[0]
    assert torch.equal(optimizer.state[model[1].weight]["moment"], moment[kept])
    step(model, x, optimizer)


def test_a_moment_of_a_square_weight_is_cut() -> None:
    model, x = network(10, 10, 10), torch.randn(5, 10, dtype=torch.float64)
    optimizer = torch.optim.SGD([model[3].weight], 0.1, 0.9)
    step(model, x, optimizer)
    whole = optimizer.state[model[3].weight]["momentum_buffer"].clone()
    plan = cut(model, x, optimizer)
    found = optimizer.state[model[3].weight]["momentum_buffer"]
    assert torch.equal(found, plan.tensors["3.weight"].take(whole))
