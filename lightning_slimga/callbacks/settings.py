"""What a pruning run is asked for, and what it leaves behind, as plain data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_slimga.budget import LATENCY
from lightning_slimga.plan import PruningPlan
from lightning_slimga.search import Front


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        named = isinstance(self.monitor, str) and self.monitor != ""
        expect(named, "monitor", "a metric's name", self.monitor)
        expect(self.mode in ("min", "max"), "mode", "'min' or 'max'", self.mode)
        for name, least in (
            ("population_size", 2),
            ("generations", 1),
            ("recalibration_batches", 0),
            ("min_channels", 1),
            ("round_to", 1),
        ):
            expect_whole(name, getattr(self, name), least)
        for name in ("max_evaluations", "max_time", "patience"):
            limit = getattr(self, name)
            expect(limit is None or limit > 0, name, "positive or None", limit)
        share = "None, an int >= 1 or a float in (0, 1]"
        used = self.fitness_batches
        expect(_is_share_or_count(used), "fitness_batches", share, used)
        self._check_front()

    def _check_front(self) -> None:
        expect(
            _is_pick(self.pick),
            "pick",
            "None, 'knee', an int (index on the front), a float in (0, 1) (share of the first"
            ' budget\'s cost) or a mapping such as {"macs": 0.5}',
            self.pick,
        )
        if isinstance(self.pick, Mapping) and LATENCY not in self.budget:
            known = LATENCY not in self.pick
            expect(known, "pick", f"without {LATENCY!r} where `budget` has none", self.pick)
        drop = self.max_drop
        number = isinstance(drop, (int, float)) and not isinstance(drop, bool)
        allowed = drop is None or (number and drop >= 0)
        expect(allowed, "max_drop", "a number of at least 0 or None", drop)
        either = self.pick is None or drop is None
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
    def searched(self) -> str:
        """What a search depends on, as text: not on how its end is chosen."""
        by_cost = self.pick if isinstance(self.pick, (float, Mapping)) else self.has_front
        kind = by_cost, self.max_drop is None, self.front is None
        return f"{replace(self, pick=None, max_drop=None, front=None, report=True)} {kind}"


@dataclass
class PruningResult:
    """What a run leaves behind.

    Attributes:
        plan: the applied plan; None where the budget was met already.
        history: the generations, plain data.
        seeds: fitness of the masks that need no search, by name.
        timings: seconds by part of the run.
        fitness: metric of the dense network, of the winner in the search, and of the winner on
            all validation data.
        front: what there was to choose from, where the network is chosen from a front.
        chosen: index of the point that was taken.
        floor: the worst metric that was allowed, with `max_drop`.
    """

    plan: PruningPlan | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seeds: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    fitness: dict[str, float] = field(default_factory=dict)
    front: Front | None = None
    chosen: int = 0
    floor: float | None = None

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes to `timings`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[part] = self.timings.get(part, 0.0) + time.perf_counter() - start


def expect(holds: bool, name: str, expected: str, got: Any) -> None:
    """Refuse an argument in words.

    Raises:
        ValueError: unless `holds`.
    """
    if not holds:
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got {got!r}.")


def expect_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number, or too small.

    Raises:
        ValueError: naming the argument.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    expect(whole and value >= least, name, f"a whole number of at least {least}", value)


def _is_pick(value: Any) -> bool:
    if isinstance(value, float):
        return 0 < value < 1
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value is None or value == "knee" or whole or isinstance(value, Mapping)


def _is_share_or_count(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    return value >= 1 if isinstance(value, int) else 0.0 < value <= 1.0
