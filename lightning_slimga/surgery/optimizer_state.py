"""Optimizers after surgery: they hold the live parameters, and their state is cut along."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_slimga.surgery.transaction import Transaction

if TYPE_CHECKING:
    from lightning_slimga.surgery.tensor_cut import TensorCut


def check_optimizers(optimizers: Iterable[Any]) -> list[torch.optim.Optimizer]:
    """Unwrap and refuse what cannot follow a surgery.

    Args:
        optimizers: torch optimizers, or wrappers that keep one in ``.optimizer``
            (``LightningOptimizer``).

    Returns:
        The torch optimizers.

    Raises:
        TypeError: for something that is no optimizer, and for LBFGS, whose history is one flat
            vector over all parameters.
    """
    if isinstance(optimizers, torch.optim.Optimizer):
        optimizers = [optimizers]
    checked = []
    for given in optimizers:
        optimizer = getattr(given, "optimizer", given)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"Expected argument `optimizers` to hold torch optimizers, but got"
                f" {type(given).__name__}."
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "Expected argument `optimizers` to hold optimizers with state per parameter, but"
                " got LBFGS, which keeps one flat history over all parameters. Prune with another"
                " optimizer and continue with a fresh LBFGS."
            )
        checked.append(optimizer)
    return checked


def optimizers_of(parameters: Iterable[Tensor]) -> list[torch.optim.Optimizer]:
    """Every optimizer of this program that holds one of some parameters.

    A Trainer does not know them all: one that a module keeps for itself, one inside another (SAM,
    Lookahead). So all objects are asked, not a list of places.
    """
    held = {id(parameter) for parameter in parameters}
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.optim.Optimizer)]
    return [
        one
        for one in found
        if "param_groups" in one.__dict__
        and any(id(p) in held for group in one.param_groups for p in group["params"])
    ]


def replace_in_optimizers(
    optimizers: list[torch.optim.Optimizer],
    replaced: Mapping[Tensor, tuple[Tensor, TensorCut]],
    transaction: Transaction,
) -> None:
    """Put each small parameter in the place of the full one, and cut its state.

    State tensors that hold a number for each entry of the parameter are cut, one-element tensors
    and plain numbers are kept; where anything else is found (a factored or quantised moment, a
    preconditioner) the parameter's state starts anew, and one warning per optimizer names these
    parameters.

    Args:
        optimizers: torch optimizers; several may share groups or state.
        replaced: full parameter -> (small parameter, its cut), the same object where it has been
            cut itself.
        transaction: where the changes are recorded.
    """
    done: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for position, old in enumerate(group["params"]):
                if old in replaced and replaced[old][0] is not old:
                    transaction.set_item(group["params"], position, replaced[old][0])
        if id(optimizer.state) not in done:
            done.add(id(optimizer.state))
            _cut_states(optimizer, replaced, transaction)


def _cut_states(
    optimizer: torch.optim.Optimizer,
    replaced: Mapping[Tensor, tuple[Tensor, TensorCut]],
    transaction: Transaction,
) -> None:
    state = optimizer.state
    transaction.on_roll_back(partial(_refill, state, dict(state)))
    by_entry = _kept_by_entry(optimizer, replaced)
    anew: list[str] = []
    for old in [parameter for parameter in state if parameter in replaced]:
        new, cut = replaced[old]
        small = _cut_state(state.pop(old), cut, by_entry, anew)
        if small:
            state[new] = small
    if anew:
        warnings.warn(
            f"{type(optimizer).__name__} keeps state that cannot be cut along with its"
            f" parameter, so it starts anew for: {', '.join(anew)}.",
            stacklevel=2,
        )


def _kept_by_entry(
    optimizer: torch.optim.Optimizer, replaced: Mapping[Tensor, tuple[Tensor, TensorCut]]
) -> set[str]:
    """Names of the state that holds a number for each entry of its parameter.

    A square weight's preconditioner has the weight's shape, and is no such state. So a name counts
    where it has its parameter's shape for all parameters, one of which at least is not square; or
    where the optimizer is torch's own, none of which keeps anything else of that shape.
    """
    evidence: dict[str, set[bool]] = {}
    for parameter, held in optimizer.state.items():
        if not isinstance(parameter, Tensor) or not isinstance(held, Mapping):
            continue
        shape = replaced[parameter][1].shape if parameter in replaced else tuple(parameter.shape)
        square = len(shape) > 1 and len(set(shape)) == 1
        for name, value in held.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                alike = tuple(value.shape) == shape
                evidence.setdefault(name, set()).update({alike} - ({True} if square else set()))
    own = type(optimizer).__module__.startswith("torch.optim")
    return {name for name, found in evidence.items() if found == {True} or (own and not found)}


def _cut_state(
    full: Mapping[str, Any], cut: TensorCut, by_entry: set[str], anew: list[str]
) -> dict[str, Any]:
    """The state of one small parameter; empty, and named in ``anew``, where it cannot be cut."""
    small: dict[str, Any] = {}
    for key, value in full.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            small[key] = value
        elif key in by_entry and tuple(value.shape) == cut.shape:
            small[key] = cut.take(value)
        else:
            name = ".".join(filter(None, cut.places[0]))
            anew.append(f"{name} ({key!r} of shape {tuple(value.shape)})")
            return {}
    return small


def _refill(state: dict[Any, Any], content: dict[Any, Any]) -> None:
    state.clear()
    state.update(content)
