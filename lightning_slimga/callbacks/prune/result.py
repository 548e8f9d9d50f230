"""What a pruning run leaves behind, whether it has come to its end or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning_slimga.search import Front
from lightning_slimga.surgery.plan import PruningPlan


@dataclass
class PruningResult:
    """Filled in as a run goes on; of one that was interrupted, as far as it has come.

    Attributes:
        plan: the applied plan; None where nothing was cut.
        history: the generations, plain data.
        seeds: fitness of the masks that need no search, by name.
        timings: seconds by part of the run.
        fitness: metric, on the data that the search sees, of the uncut network as it is ("dense")
            and with batch-norm statistics taken anew ("recalibrated"), which is how candidates are
            measured; of the winner in the search ("search"), and of the winner on all validation
            data ("chosen").
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
