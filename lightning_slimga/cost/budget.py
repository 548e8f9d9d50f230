"""What a user asks for ("half of the MACs") as limits that a search can keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_slimga.arguments import REFUSED, Rule, expect, number, plain_number
from lightning_slimga.graph.cost import Cost
from lightning_slimga.search import Budget

LATENCY = "latency_ms"


def _share_or_count(given: Any) -> Any:
    found = plain_number(given)
    inside = found is not REFUSED and (0 < found <= 1 or (found > 1 and float(found).is_integer()))
    return found if inside else REFUSED


_SIZE = Rule("a fraction in (0, 1] or a whole number above 1 (absolute)", _share_or_count)
_LIMITS = {
    "macs": _SIZE,
    "params": _SIZE,
    LATENCY: number("positive milliseconds", lambda limit: 0 < limit < math.inf),
}
KNOWN_BUDGETS = tuple(_LIMITS)
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
        TypeError: when ``budget`` is no mapping.
        ValueError: when it is empty, for an unknown name, and for a limit that is not what it may
            be.

    Examples:
        >>> check_budget({"macs": np.float64(0.5), "latency_ms": 2})
        {'macs': 0.5, 'latency_ms': 2}
    """
    if not isinstance(budget, Mapping):
        raise TypeError(
            f'Expected argument `{argument}` to be a mapping such as {{"macs": 0.5}}, but got'
            f" {type(budget).__name__}."
        )
    expect(bool(budget), argument, 'at least one limit, such as {"macs": 0.5}', budget)
    for name in budget:
        expect(name in _LIMITS, argument, f"limits of some of {', '.join(_LIMITS)}", name)
    return {n: _LIMITS[n].check(f"{argument}[{n!r}]", limit) for n, limit in budget.items()}


def budgets_for(
    budget: Mapping[str, int | float],
    cost: Cost,
    counts: npt.NDArray[np.int64],
    samples: int,
    latency: Callable[[npt.NDArray[np.int64]], Any] | None = None,
    *,
    dense: Mapping[str, float] = MappingProxyType({}),
    apart: Mapping[str, float] = MappingProxyType({}),
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
        apart: the part of it that fractions do not refer to, by name, and that always stays.

    Returns:
        Limits for a :class:`~lightning_slimga.search.SearchSpace`, in the unit that the user
        speaks: MACs per sample, parameters, milliseconds.

    Examples:
        >>> from lightning_slimga.graph.cost import LinearSize, Polynomial, Term
        >>> size = Polynomial([Term("linear", 10, (LinearSize(0, ((0, 1),)),))], num_layers=1)
        >>> (half,) = budgets_for({"params": 0.5}, Cost(size, size), np.array([8]), samples=1)
        >>> half.name, half.limit  # 8 channels of 10 parameters each, halved
        ('params', 40.0)
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
        limit = share_of(full, limit, apart.get(name, 0.0)) if limit <= 1 else float(limit)
        limits.append(Budget(name, limit, formulas[name]))
    return limits


def share_of(full: float, share: float, apart: float) -> float:
    """A share of what a network costs, apart from a part that always stays."""
    return share * (full - apart) + apart
