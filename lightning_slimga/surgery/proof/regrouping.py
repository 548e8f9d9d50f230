"""Regrouping: how many groups a contraction has when what lives is contracted alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from lightning_slimga.surgery.masking import Mask

Lives = dict[int, Mask]
"""Which indices of a tensor live, by dimension; without the dimensions of which all do."""


def regrouped(func: Any, args: Sequence[Any], lives: Sequence[Lives]) -> Sequence[Any] | None:
    """Arguments with the number of groups that live; None where that is not easy to tell."""
    where = _position(func, "groups")
    some = [live for dims in lives for live in dims.values()]
    number = 1 if where is None or where >= len(args) else args[where]
    if where is None or number == 1:
        places = [live.tobytes() for live in some]
        return None if any(places.count(place) < 2 for place in places) else args
    if _alike_in_groups(some, number):
        return args
    if any(len(live) % number for live in some):
        return None
    groups = [live.reshape(number, -1) for live in some]
    left: Mask = np.any(groups[0], axis=1)
    if not all((group == left.reshape(-1, 1)).all() for group in groups):
        return None
    return [*args[:where], int(left.sum()), *args[where + 1 :]]


def _alike_in_groups(lives: Sequence[Mask], groups: int) -> bool:
    """Whether every group loses the same of its channels, and weights of one group those."""
    rows = [_row(live, groups) for live in lives]
    places = [
        (live if row is None else row).tobytes() for live, row in zip(lives, rows, strict=True)
    ]
    whole = {row.tobytes() for row in rows if row is not None}
    return all(place in whole and places.count(place) > 1 for place in places)


def _row(live: Mask, groups: int) -> Mask | None:
    """What lives of each group; None where that differs."""
    if len(live) % groups:
        return None
    row: Mask = live[: len(live) // groups]
    return row if (live.reshape(groups, -1) == row).all() else None


@cache
def _position(func: Any, name: str) -> int | None:
    names = [argument.name for argument in func._schema.arguments]
    return names.index(name) if name in names else None
