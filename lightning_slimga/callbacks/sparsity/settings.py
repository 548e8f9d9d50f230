"""What the arguments of the sparsity callback may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_slimga.arguments import (
    AMOUNT,
    FLAG,
    PATTERNS,
    REFUSED,
    Rule,
    check_patterns,
    checked,
    expect,
    number,
    optional,
    text,
    whole,
)
from lightning_slimga.sparsity.penalties import Penalty, ProximalPenalty
from lightning_slimga.sparsity.scaling_factors import NormName, ScalingFactors

_KINDS = get_args(NormName)


def _take_strength(value: Any) -> Any:
    if isinstance(value, str):
        return value if value == "auto" else REFUSED
    return AMOUNT.take(value)


def _take_norms(value: Any) -> Any:
    kinds = PATTERNS.take(value)
    return kinds if kinds is not REFUSED and kinds and set(kinds) <= {*_KINDS} else REFUSED


RULES: Mapping[str, Rule] = {
    "strength": Rule('a finite number >= 0 (1e-4 is mild) or "auto"', _take_strength),
    "target_share": number("a share between 0 and 1", lambda share: 0 < share < 1),
    "target_epoch": optional(whole(1)),
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
"""The arguments of a goal are looked at also where a fixed λ has no use for them."""


def checked_arguments(**given: Any) -> dict[str, Any]:
    """Return arguments of the callback as plain data, all but those of the penalty.

    Raises:
        ValueError: naming the first that is not what it may be.
    """
    taken = checked(RULES, **given)
    known = taken["strength"] != "auto" or taken["near_zero"] > 0
    expect(known, "near_zero", 'positive with `strength="auto"`', taken["near_zero"])
    return taken


def check_factors(pl_module: pl.LightningModule, choice: Mapping[str, Any]) -> None:
    """Refuse a choice of γ that this network does not have, before anything runs.

    Args:
        pl_module: The network.
        choice: `include`, `ignore` and `norms`.

    Raises:
        ValueError: If a pattern matches no module.
        MisconfigurationException: If there are no γ.
    """
    for argument in ("include", "ignore"):
        check_patterns(pl_module, choice[argument], argument)
    if not len(ScalingFactors(pl_module, **choice)):
        raise MisconfigurationException(
            f"SparsityCallback expected {type(pl_module).__name__} to have scaling factors γ "
            f"(weights of affine layers of the kinds {list(choice['norms'])}), but found none. Put "
            "normalisation layers behind the convolutions, choose others with `norms`, `include` "
            "and `ignore`, or leave this callback out: GeneticPruneCallback alone works there, its "
            "evaluation factor falls back to the norm of the slices."
        )


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
