"""Breeding: select parents, mate, mutate, repair. The operators are those of a DEAP toolbox.

Whoever registers an operator under one of these names in a `deap.base.Toolbox`, and gives that to
a search, replaces ours:

- ``select(individuals, k)``: ``k`` parents among all individuals told so far. It is called as DEAP
  calls it: each individual has a ``fitness``, beside its ``mask`` and ``metric``.
- ``mate(parents, count, space, rng)``: children of the parents' masks, from shape (E, C) to
  (count, C). The parents come as they were selected; in `ParetoSearch` the cheapest first.
- ``mutate(children, space, rng)``: changed children, shape (count, C).
- ``map(function, masks)``: evaluates a generation in `maximize` and `minimize`, like Python's.

A mask is boolean, True = keep; ``space`` is the `SearchSpace`, whose ``slices`` are the layers.
Children need not meet the budget: they are always repaired to it afterwards, and those that were
told already are dropped. ``rng`` is the search's own generator, whose state is saved: if operators
draw from nothing else, a search with the same toolbox resumes as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from deap import base

from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.factor import EvaluationFactor
from lightning_slimga.search.individual import Individual, stack
from lightning_slimga.search.operators import shift_widths, swap_borderline
from lightning_slimga.search.rates import Rates
from lightning_slimga.search.repair import resize
from lightning_slimga.search.screening import PromiseModel, proportions
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.stopping import Limits
from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray


class BreedingSearch(AskTellSearch):
    """What searches share that breed masks from the best ones; the arguments are theirs.

    Attributes:
        rates: constants of the variation.
        toolbox: the operators that are called.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        mode: str = "max",
        population_size: int = 24,
        limits: Limits | None = None,
        seed: int = 0,
        evaluation_factor: bool = True,
        rates: Rates | None = None,
        toolbox: base.Toolbox | None = None,
    ) -> None:
        super().__init__(
            space, mode=mode, population_size=population_size, limits=limits, seed=seed
        )
        self.rates = rates or Rates()
        learning = self.rates.learning if evaluation_factor else 0.0
        self._factor = EvaluationFactor(space, rate=learning)
        self._seed_keys: dict[str, str] = {}
        self.toolbox = base.Toolbox()
        self._register()
        if toolbox is not None:
            vars(self.toolbox).update(vars(toolbox))
        self._begin()

    def _register(self) -> None:
        """Register the operators that a user may replace."""
        self.toolbox.register("mutate", self._mutate)

    def _mated(self, parents: BoolArray) -> BoolArray:
        """Return children, shape (P, C), of the parents, shape (E, C)."""
        count = self.population_size
        return self._checked("mate", self.toolbox.mate(parents, count, self.space, self._rng))

    def _mutated(self, children: BoolArray) -> BoolArray:
        """Return changed children, shape (P, C), not yet repaired."""
        return self._checked("mutate", self.toolbox.mutate(children, self.space, self._rng))

    def _checked(self, operator: str, returned: Any) -> BoolArray:
        children: BoolArray = np.asarray(returned)
        expected = (self.population_size, self.space.num_channels)
        if children.shape != expected or children.dtype != np.bool_:
            raise ValueError(
                f"Expected `{operator}` of the toolbox to return boolean masks of shape {expected},"
                f" one row for each child, but got {children.dtype} of shape {children.shape}."
            )
        return children

    def _mutate(
        self, children: BoolArray, space: SearchSpace, rng: np.random.Generator
    ) -> BoolArray:
        """Shift widths, the most promising of several ways, and swap borderline channels."""
        rates, factor = self.rates.bolder(self._boldness), self._factor.values
        ways = np.repeat(_positive(space.counts(children))[None], rates.siblings, axis=0)
        widths = shift_widths(ways, rng, layers=rates.layers, sigma=rates.sigma)
        widths = np.clip(widths, space.grid.lowest, space.grid.size)
        chosen = widths[self._promise(widths).argmax(axis=0), np.arange(len(children))]
        # Rounded at random, so that layers with few channels change as well.
        counts = np.floor(chosen + rng.random(chosen.shape)).astype(np.int64)
        swapped = swap_borderline(space, children, factor, rng, rate=rates.swap, noise=rates.noise)
        return resize(swapped, np.minimum(counts, space.grid.size), space.layer_ids, factor)

    def _promise(self, widths: FloatArray) -> FloatArray:
        """Return what screening ranks by, (S, P, L) -> (S, P); zero where nothing is known."""
        told = [one for one in self._archive.values() if one.is_finite]
        fitness = np.array([one.fitness.wvalues[0] for one in told])
        if len(widths) == 1 or len(np.unique(fitness)) < 2:
            return np.zeros(widths.shape[:2])
        model = PromiseModel(proportions(_positive(self.space.counts(self._masks(told)))), fitness)
        promise = model.promise(proportions(widths).reshape(-1, widths.shape[-1]))
        return promise.reshape(widths.shape[:2])

    def _masks(self, individuals: Iterable[Individual]) -> BoolArray:
        return stack(individuals, self.space.num_channels)

    def _memory(self) -> dict[str, Any]:
        return {"factor": self._factor.values.tolist(), "seeds": dict(self._seed_keys)}

    def _remember(self, memory: dict[str, Any]) -> None:
        self._factor.values = np.array(memory["factor"], dtype=np.float64)
        self._seed_keys = dict(memory["seeds"])


def _positive(counts: IntArray) -> FloatArray:
    """Widths of which a log can be taken; a mating of the user's may empty a layer."""
    return np.maximum(counts, 1).astype(np.float64)
