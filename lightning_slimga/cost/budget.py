"""What a user asks for ("half of the MACs") as limits that a search can keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_slimga.arguments import REFUSED, plain_number
from lightning_slimga.graph.cost import Cost
from lightning_slimga.search import Budget

LATENCY = "latency_ms"
KNOWN_BUDGETS = ("macs", "params", LATENCY)
"""What can be limited."""


def check_budget(budget: Any, argument: str = "budget") -> dict[str, int | float]:
    """Validate a budget before anything runs.

    Args:
        budget: mapping from ``"macs"`` or ``"params"`` to a limit: a float in (0, 1] is a
            fraction of the full network, a number above 1 is absolute (MACs per sample;
            parameters). And from ``"latency_ms"`` to milliseconds, for one sample.
        argument: its name in messages.

    Returns:
        The budget with plain numbers.

    Raises:
        TypeError: when ``budget`` is no mapping or a limit is no number.
        ValueError: for an unknown name, an empty budget, or a limit out of range.
    """
    if not isinstance(budget, Mapping):
        raise TypeError(
            f'Expected argument `{argument}` to be a mapping such as {{"macs": 0.5}}, but got'
            f" {type(budget).__name__}."
        )
    if not budget:
        raise ValueError(
            f"Expected argument `{argument}` to name at least one limit, such as"
            ' {"macs": 0.5}, but got none.'
        )
    return {name: _checked_limit(name, limit, argument) for name, limit in budget.items()}


def _checked_limit(name: Any, given: Any, argument: str) -> int | float:
    if name not in KNOWN_BUDGETS:
        raise ValueError(
            f"Expected argument `{argument}` to limit one of {', '.join(KNOWN_BUDGETS)}, but"
            f" got {name!r}."
        )
    limit: Any = plain_number(given)
    if limit is REFUSED:
        raise TypeError(
            f"Expected argument `{argument}[{name!r}]` to be a number, but got"
            f" {type(given).__name__}."
        )
    if name == LATENCY:
        _check_milliseconds(argument, limit)
    elif not limit > 0 or (limit > 1 and not float(limit).is_integer()):
        raise ValueError(
            f"Expected argument `{argument}[{name!r}]` to be a fraction in (0, 1] or a whole"
            f" number above 1 (absolute), but got {limit}."
        )
    return limit  # type: ignore[no-any-return]


def _check_milliseconds(argument: str, limit: float) -> None:
    if not 0 < limit < math.inf:
        raise ValueError(
            f"Expected argument `{argument}[{LATENCY!r}]` to be positive milliseconds, but got"
            f" {limit}."
        )


def budgets_for(
    budget: Mapping[str, int | float],
    cost: Cost,
    counts: npt.NDArray[np.int64],
    samples: int,
    latency: Callable[[npt.NDArray[np.int64]], Any] | None = None,
    *,
    dense: Mapping[str, float] = MappingProxyType({}),
) -> list[Budget]:
    """The limits of one network.

    Args:
        budget: a checked budget.
        cost: the network's cost on its example inputs.
        counts: channels of the full network, shape (layers,).
        samples: samples in the example inputs; absolute MACs are per sample.
        latency: milliseconds of networks with the given channels, (population, layers) ->
            (population,); needed for a limit on it.
        dense: what fractions refer to, by name; the full network's cost where it is missing.

    Returns:
        Limits for a :class:`~lightning_slimga.search.SearchSpace`, in the unit that the user
        speaks: MACs per sample, parameters, milliseconds.
    """
    formulas: dict[str, Callable[[npt.NDArray[np.int64]], Any]] = {
        "macs": lambda kept: cost.macs(kept) / samples,
        "params": cost.params,
    }
    limits = []
    for name, limit in budget.items():
        if name == LATENCY:
            assert latency is not None
            limits.append(Budget(name, float(limit), latency))
            continue
        full = dense.get(name, float(formulas[name](counts[None])[0]))
        limits.append(Budget(name, limit * full if limit <= 1 else float(limit), formulas[name]))
    return limits
