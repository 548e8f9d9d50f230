"""What a pruning run is asked for, and what it leaves behind, as plain data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning_slimga.plan import PruningPlan


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
    """

    plan: PruningPlan | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seeds: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    fitness: dict[str, float] = field(default_factory=dict)

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


def _is_share_or_count(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    return value >= 1 if isinstance(value, int) else 0.0 < value <= 1.0
