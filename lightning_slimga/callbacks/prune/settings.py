"""What a pruning run is asked for, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deap import base

from lightning_slimga.arguments import (
    FLAG,
    PATH,
    REFUSED,
    SURGERY,
    TWINS,
    Rule,
    check_fields,
    expect,
    number,
    one_of,
    optional,
    plain_number,
    text,
    whole,
)
from lightning_slimga.cost.budget import LATENCY, check_budget
from lightning_slimga.search import Limits


@dataclass(frozen=True)
class SearchSettings:
    """The arguments of a GeneticPruneCallback that its runs need; see there.

    Raises:
        ValueError: when one of them is out of its range.
    """

    monitor: str
    mode: str
    budget: Mapping[str, int | float]
    population_size: int
    generations: int
    max_evaluations: int | None
    max_time: float | None
    patience: int | None
    fitness_batches: int | float | None
    recalibration_batches: int
    racing: bool
    min_channels: int
    round_to: int
    ignore: tuple[str, ...]
    only_scaled: bool
    allow_approximate: bool
    evaluation_factor: bool
    reset_monitors: bool
    seed: int
    report: bool
    pick: str | int | float | Mapping[str, int | float] | None = None
    max_drop: float | None = None
    front: str | None = None
    twins: str | bool | tuple[tuple[str, str], ...] = "auto"
    prune_untrained: bool = False
    toolbox: base.Toolbox | None = field(default=None, repr=False, compare=False)
    example_calls: Any = field(default=None, repr=False, compare=False)
    samples_per_batch: int | None = None

    def __post_init__(self) -> None:
        """Check each argument by itself, then those that depend on each other."""
        check_fields(self, RULES, RULES)
        if isinstance(self.pick, Mapping) and LATENCY not in self.budget:
            known = LATENCY not in self.pick
            expect(known, "pick", f"without {LATENCY!r} where `budget` has none", self.pick)
        either = self.pick is None or self.max_drop is None
        expect(either, "pick", "None with `max_drop`, which picks by itself", self.pick)
        if self.front is not None:
            told = self.has_front
            expect(told, "front", "None without `pick` or `max_drop`", self.front)
        if self.has_front:
            alone = self.patience is None
            expect(alone, "patience", "None with `pick` or `max_drop`", self.patience)

    @property
    def has_front(self) -> bool:
        """Whether the network is chosen from a front of metric and cost."""
        return self.pick is not None or self.max_drop is not None

    @property
    def told(self) -> dict[str, Any]:
        """What a report repeats, plain data: of a toolbox the operators that it replaces."""
        replaced = [name for name in ("select", "mate", "mutate") if hasattr(self.toolbox, name)]
        given = None if self.example_calls is None else "given"
        return {**vars(self), "toolbox": replaced or None, "example_calls": given}

    @property
    def sign(self) -> float:
        """What a metric is multiplied by, so that more of it is better."""
        return 1.0 if self.mode == "max" else -1.0

    @property
    def of_search(self) -> dict[str, Any]:
        """The arguments that every search takes."""
        names = ("mode", "population_size", "evaluation_factor", "seed", "toolbox")
        limits = Limits(self.generations, self.max_evaluations, self.max_time, self.patience)
        return {**{name: getattr(self, name) for name in names}, "limits": limits}

    @property
    def searched(self) -> str:
        """What a search depends on, as text: not on how its end is chosen."""
        by_cost = self.pick if isinstance(self.pick, (float, Mapping)) else self.has_front
        kind = by_cost, self.max_drop is None, self.front is None
        return f"{replace(self, pick=None, max_drop=None, front=None, report=True)} {kind}"


def _take_pick(value: Any) -> Any:
    if isinstance(value, Mapping):
        return check_budget(value, "pick")
    if value is None or (isinstance(value, str) and value == "knee"):
        return value
    found = plain_number(value)
    return found if isinstance(found, int) or (found is not REFUSED and 0 < found < 1) else REFUSED


def _take_share_or_count(value: Any) -> Any:
    found = plain_number(value)
    least, most = (1, math.inf) if isinstance(found, int) else (0, 1)
    inside = found is not REFUSED and found > 0 and least <= found <= most
    return None if value is None else found if inside else REFUSED


def _take_examples(value: Any) -> Any:
    if value is None or callable(value):
        return value
    return list(value) if isinstance(value, (list, tuple)) and value else REFUSED


def _take_toolbox(value: Any) -> Any:
    mapped = isinstance(value, base.Toolbox) and value.map.func is map
    return value if value is None or mapped else REFUSED


def _take_twins(value: Any) -> Any:
    if value is False or (isinstance(value, str) and value == "auto"):
        return value
    return TWINS.take(value)


RULES: Mapping[str, Rule] = {
    "monitor": text("a metric's name"),
    "mode": one_of("min", "max"),
    "population_size": whole(2),
    "generations": whole(1),
    "max_evaluations": optional(whole(1)),
    "max_time": optional(number("a positive number of seconds", lambda seconds: seconds > 0)),
    "patience": optional(whole(1)),
    "fitness_batches": Rule("None, an int >= 1 or a float in (0, 1]", _take_share_or_count),
    "recalibration_batches": whole(0),
    "racing": FLAG,
    **SURGERY,
    "evaluation_factor": FLAG,
    "reset_monitors": FLAG,
    "seed": whole(0, below=2**64),
    "report": FLAG,
    "pick": Rule(
        "None, 'knee', an int (index on the front), a float in (0, 1) (share of what the dense"
        ' network costs, as the first budget counts it) or a mapping such as {"macs": 0.5}',
        _take_pick,
    ),
    "max_drop": optional(number("a number of at least 0", lambda drop: drop >= 0)),
    "front": optional(PATH),
    "twins": Rule(f"'auto', False or {TWINS.expected}", _take_twins),
    "prune_untrained": FLAG,
    "toolbox": Rule(
        "None or a `deap.base.Toolbox` with a `map` of its own left out (candidates run inside the"
        " fit, one after the other; `lightning_slimga.search.maximize` takes another `map`)",
        _take_toolbox,
    ),
    "example_calls": Rule(
        "None, a list of what calls receive (each a Tensor, a tuple of arguments, a dict of keyword"
        " arguments or a `Call`) or a function that takes the LightningModule and returns one",
        _take_examples,
    ),
    "samples_per_batch": optional(whole(1)),
}
"""What each argument may be, taken by itself; that of `budget` is
:func:`~lightning_slimga.cost.budget.check_budget`."""
