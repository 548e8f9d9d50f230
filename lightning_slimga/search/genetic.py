"""The genetic search: masks under exact budgets that a few hundred evaluations make good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from deap import tools

from lightning_slimga.search.breeding import BreedingSearch
from lightning_slimga.search.individual import Individual, encode_mask
from lightning_slimga.search.operators import inherit_layers
from lightning_slimga.search.seeds import random_masks, rankings
from lightning_slimga.search.widths import BoolArray


class GeneticSearch(BreedingSearch):
    """Search for the mask with the best metric among those that meet the budgets.

    The first generation holds the seeds: what a γ threshold, γ per cost and a uniform cut keep, and
    random widths. Each later one is bred from the best masks of all generations so far: layers are
    inherited whole, widths shift between layers, borderline channels swap, and repair brings every
    child exactly under budget. No mask is evaluated twice.

    Args:
        space: what to search.
        mode: "max" or "min", the direction of the metric.
        population_size: candidates per generation, at least 1.
        limits: when the search ends.
        seed: seed of the search's own generator; no global generator is touched.
        evaluation_factor: let the factor learn; otherwise it stays the normalised score.
        rates: constants of the variation.
        toolbox: operators in place of ours, see :mod:`lightning_slimga.search.breeding`.

    Raises:
        ValueError: an argument is out of its range.

    >>> import numpy as np
    >>> from lightning_slimga.search import Budget, GeneticSearch, Limits, SearchSpace
    >>> half = Budget("channels", 20, lambda counts: counts.sum(axis=1))
    >>> space = SearchSpace([("a", slice(0, 20)), ("b", slice(20, 40))], np.ones(40), [half])
    >>> search = GeneticSearch(space, population_size=6, limits=Limits(generations=4))
    >>> while not search.done:
    ...     masks = search.ask()
    ...     search.tell(masks, [float(mask[:20].sum()) for mask in masks])
    >>> search
    GeneticSearch(generation 4 of 4, 24 evaluations, best 19: finished 4 generations)
    """

    @property
    def seeds(self) -> dict[str, float]:
        """Metric of each seed that has been told, by its name."""
        told = {name: self._archive.get(key) for name, key in self._seed_keys.items()}
        return {name: one.value for name, one in told.items() if one is not None}

    @property
    def num_parents(self) -> int:
        """How many of the best candidates a generation is bred from."""
        return max(2, round(self.rates.parents * self.population_size))

    def _register(self) -> None:
        super()._register()
        self.toolbox.register("select", tools.selBest)
        self.toolbox.register("mate", inherit_layers)

    def _first(self) -> BoolArray:
        drawn = random_masks(self.space, self._factor.values, self._rng, self.population_size)
        before = len(self._seed_keys)
        numbered = {f"random_widths_{before + i}": mask for i, mask in enumerate(drawn)}
        named = {**rankings(self.space), **numbered}
        self._seed_keys |= {name: encode_mask(mask) for name, mask in named.items()}
        return np.stack(list(named.values()))

    def _variation(self) -> BoolArray:
        parents = self.toolbox.select(list(self._archive.values()), self.num_parents)
        return self._repaired(self._mutated(self._mated(self._masks(parents))))

    def _repaired(self, children: BoolArray) -> BoolArray:
        return self.space.repair(children, self._factor.values)

    def _learn(self, told: Sequence[Individual]) -> None:
        survivors = self._ranked(self.population_size)
        everyone = {one.key: one for one in [*survivors, *told]}
        elite = self._masks(survivors[: self.num_parents])
        self._factor.follow(elite, self._masks(everyone.values()))
