"""Optimizers after surgery: they hold the live parameters, and their state is cut along."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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


def replace_in_optimizers(
    optimizers: list[torch.optim.Optimizer],
    replaced: Mapping[Tensor, tuple[nn.Parameter, TensorCut]],
    transaction: Transaction,
) -> None:
    """Put each small parameter in the place of the full one, and cut its state.

    State tensors of the parameter's shape are cut, one-element tensors and plain numbers are
    kept; where anything else is found (a factored or quantised moment) the parameter's state
    starts anew, and one warning per optimizer names these parameters.

    Args:
        optimizers: torch optimizers.
        replaced: full parameter -> (small parameter, its cut).
        transaction: where the changes are recorded.
    """
    for optimizer in optimizers:
        state = optimizer.state
        transaction.on_roll_back(partial(_refill, state, dict(state)))
        anew: list[str] = []
        for group in optimizer.param_groups:
            parameters = group["params"]
            for position, old in enumerate(parameters):
                if old not in replaced:
                    continue
                new, cut = replaced[old]
                transaction.set_item(parameters, position, new)
                if old in state:
                    small = _cut_state(state.pop(old), old, cut, anew)
                    if small:
                        state[new] = small
        if anew:
            warnings.warn(
                f"{type(optimizer).__name__} keeps state that cannot be cut along with its"
                f" parameter, so it starts anew for: {', '.join(anew)}.",
                stacklevel=2,
            )


def _cut_state(
    full: Mapping[str, Any], old: Tensor, cut: TensorCut, anew: list[str]
) -> dict[str, Any]:
    """The state of one small parameter; empty, and named in ``anew``, where it cannot be cut."""
    small: dict[str, Any] = {}
    for key, value in full.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            small[key] = value
        elif value.shape == old.shape:
            small[key] = cut.take(value)
        else:
            name = ".".join(filter(None, cut.places[0]))
            anew.append(f"{name} ({key!r} of shape {tuple(value.shape)})")
            return {}
    return small


def _refill(state: dict[Any, Any], content: dict[Any, Any]) -> None:
    state.clear()
    state.update(content)
