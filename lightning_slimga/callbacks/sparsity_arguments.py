"""What the sparsity callback refuses at construction, each in a sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real


def expect(holds: bool, argument: str, expected: str, got: object, way_out: str = "") -> None:
    """Raise a ValueError that names the argument, unless it holds."""
    if not holds:
        raise ValueError(
            f"Expected argument `{argument}` to be {expected}, but got {got!r}{way_out}."
        )


def check_goal(strength: object, target_share: object, target_epoch: object) -> None:
    """Refuse a λ that is none, and goals that cannot be.

    The goals are looked at also where a fixed λ has no use for them: so a mistake shows at once.

    Raises:
        ValueError: If one of them is out of its range.
    """
    known = strength == "auto" if isinstance(strength, str) else _is_number(strength)
    way_out = "; 1e-4 is mild, and it must be finite"
    expect(known, "strength", 'a number >= 0 or "auto"', strength, way_out)
    inside = _is_number(target_share) and 0 < target_share < 1  # type: ignore[operator]
    way_out = "; 0.5 brings half of γ near zero"
    expect(inside, "target_share", "between 0 and 1", target_share, way_out)
    whole = isinstance(target_epoch, Integral) and not isinstance(target_epoch, bool)
    whole = whole and target_epoch >= 1  # type: ignore[operator]
    way_out = "; None is the next pruning, or the end of the fit"
    expect(
        target_epoch is None or whole,
        "target_epoch",
        "an integer >= 1 or None",
        target_epoch,
        way_out,
    )


def check_numbers(**numbers: object) -> None:
    """Refuse what is not a finite number >= 0.

    Raises:
        ValueError: If one is not.
    """
    for argument, number in numbers.items():
        expect(_is_number(number), argument, "a number >= 0", number)


def check_switches(proximal: object, **switches: object) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ValueError: If one is not; `proximal` may be None.
    """
    for argument, switch in switches.items():
        expect(isinstance(switch, bool), argument, "True or False", switch)
    known = proximal is None or isinstance(proximal, bool)
    expect(known, "proximal", "True, False or None", proximal)


def _is_number(number: object) -> bool:
    if not isinstance(number, Real) or isinstance(number, bool):
        return False
    return math.isfinite(number) and float(number) >= 0
