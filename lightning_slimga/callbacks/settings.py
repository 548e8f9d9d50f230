"""What a pruning run is asked for, and what it leaves behind, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_slimga.plan import PruningPlan


@dataclass(frozen=True)
class SearchSettings:
    """The arguments of a GeneticPruneCallback that its runs need; see there."""

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
    min_channels: int
    round_to: int
    ignore: tuple[str, ...]
    only_scaled: bool
    allow_approximate: bool
    evaluation_factor: bool
    reset_monitors: bool
    seed: int
    report: bool


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
