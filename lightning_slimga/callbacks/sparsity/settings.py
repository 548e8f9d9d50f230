"""What the arguments of the sparsity callback may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from lightning_slimga.arguments import (
    FLAG,
    PATTERNS,
    REFUSED,
    Rule,
    number,
    optional,
    text,
    whole,
)
from lightning_slimga.sparsity.penalties import Penalty, ProximalPenalty
from lightning_slimga.sparsity.scaling_factors import NormName

_KINDS = get_args(NormName)


def _take_strength(value: Any) -> Any:
    if isinstance(value, str):
        return value if value == "auto" else REFUSED
    return AMOUNT.take(value)


def _take_norms(value: Any) -> Any:
    kinds = PATTERNS.take(value)
    return kinds if kinds is not REFUSED and kinds and set(kinds) <= {*_KINDS} else REFUSED


AMOUNT = number("a finite number >= 0", lambda value: 0 <= value < math.inf)
RULES: Mapping[str, Rule] = {
    "strength": Rule('a finite number >= 0 (1e-4 is mild) or "auto"', _take_strength),
    "target_share": number("a share between 0 and 1", lambda share: 0 < share < 1),
    "target_epoch": optional(whole(1)),
    "epsilon": optional(number("a positive number", lambda value: 0 < value < math.inf)),
    "coupled": FLAG,
    "proximal": optional(FLAG),
    "warmup_epochs": AMOUNT,
    "include": PATTERNS,
    "ignore": PATTERNS,
    "norms": Rule(f"some of {', '.join(map(repr, _KINDS))}", _take_norms),
    "near_zero": AMOUNT,
    "until_surgery": FLAG,
    "log": FLAG,
    "histogram_every_n_epochs": whole(0),
    "name": text("text"),
}
"""Whether there is such a goal is looked at also where a fixed λ has no use for it."""


def steps_proximally(wanted: bool | None, penalty: Penalty, given: Any, *, steered: bool) -> bool:
    """Return whether γ follows the penalty in proximal steps.

    Args:
        wanted: the argument `proximal`.
        penalty: the penalty.
        given: as the user gave it.
        steered: whether λ is; then that is the default, where it is possible.

    Raises:
        TypeError: if the penalty has no closed form for that, and it is wanted.
    """
    possible = isinstance(penalty, ProximalPenalty)
    if wanted and not possible:
        raise TypeError(
            "Expected argument `penalty` to have a closed-form `prox` when `proximal=True`, "
            f"but got {given!r}; use 'l1_2' or 'l1', or `proximal=False`."
        )
    return steered and possible if wanted is None else wanted
