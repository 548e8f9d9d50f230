"""The genetic search: masks under exact budgets that a few hundred evaluations make good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.factor import EvaluationFactor
from lightning_slimga.search.individual import Individual, encode_mask, stack
from lightning_slimga.search.operators import (
    draw_layers,
    inherit_layers,
    mix_bits,
    shift_widths,
    swap_borderline,
)
from lightning_slimga.search.rates import Rates
from lightning_slimga.search.repair import resize
from lightning_slimga.search.screening import PromiseModel, proportions
from lightning_slimga.search.seeds import random_masks, random_widths, rankings
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray, FloatArray


class GeneticSearch(AskTellSearch):
    """Search for the mask with the best metric among those that meet the budgets.

    The first generation holds the seeds: what a γ threshold, γ per cost and a uniform cut keep, and
    random widths. Each later one is bred from the best masks of all generations so far: layers are
    inherited whole, widths shift between layers, borderline channels swap, and repair brings every
    child exactly under budget. No mask is evaluated twice.

    Args:
        space: what to search.
        mode: "max" or "min", the direction of the metric.
        population_size: candidates per generation, at least 2.
        generations: generations to run, at least 1; the first holds the seeds.
        max_evaluations: stop after this many told candidates.
        max_time: stop after this many seconds, time before an interruption included.
        patience: stop after this many generations without a better best.
        seed: seed of the search's own generator; no global generator is touched.
        evaluation_factor: let the factor learn; otherwise it stays the normalised score.
        layer_operators: vary whole layers; otherwise single bits.
        seeds: start from the seeds; otherwise from random widths alone.
        screening: evaluate of several siblings the one that a model of the told candidates
            finds most promising.
        repair: bring children under budget; otherwise those above count as worst, unevaluated.
        rates: constants of the variation.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        mode: str = "max",
        population_size: int = 24,
        generations: int = 9,
        max_evaluations: int | None = None,
        max_time: float | None = None,
        patience: int | None = None,
        seed: int = 0,
        evaluation_factor: bool = True,
        layer_operators: bool = True,
        seeds: bool = True,
        screening: bool = True,
        repair: bool = True,
        rates: Rates | None = None,
    ) -> None:
        if population_size < 2:
            raise ValueError(
                f"Expected argument `population_size` to be at least 2, but got {population_size}."
            )
        super().__init__(
            space,
            mode=mode,
            population_size=population_size,
            generations=generations,
            max_evaluations=max_evaluations,
            max_time=max_time,
            patience=patience,
            seed=seed,
        )
        self.rates = rates or Rates()
        self._layer_operators = layer_operators
        self._repair = repair
        self._siblings = self.rates.siblings if screening else 1
        learning = self.rates.learning if evaluation_factor else 0.0
        self._factor = EvaluationFactor(space, rate=learning)
        named = rankings(space) if seeds else {}
        self._seed_keys = {name: encode_mask(mask) for name, mask in named.items()}
        self._named = list(named.values())
        self._begin()

    @property
    def seeds(self) -> dict[str, float]:
        """Metric of each seed that has been told, by its name."""
        told = {name: self._archive.get(key) for name, key in self._seed_keys.items()}
        return {n: one.metric for n, one in told.items() if one and one.metric is not None}

    def _first(self, boldness: float) -> BoolArray:
        drawn = self._random(self.population_size)
        if self._named:
            for mask in drawn:
                name = f"random_widths_{len(self._seed_keys) - len(self._named)}"
                self._seed_keys[name] = encode_mask(mask)
        return np.concatenate([*(mask[None] for mask in self._named), drawn])

    def _random(self, count: int) -> BoolArray:
        factor = self._factor.values
        if self._repair:
            return random_masks(self.space, factor, self._rng, count)
        widths = random_widths(self.space, self._rng, count)
        everything = np.ones((count, self.space.num_channels), dtype=np.bool_)
        return self._resized(everything, widths)

    def _resized(self, masks: BoolArray, widths: FloatArray) -> BoolArray:
        counts = self.space.grid.counts(self.space.grid.levels(widths))
        return resize(masks, counts, self.space.layer_ids, self._factor.values)

    def _variation(self, boldness: float) -> BoolArray:
        elite = stack(self._ranked(self.num_parents), self.space.num_channels)
        if not len(elite):  # without repair a generation may hold nothing feasible
            return self._random(self.population_size)
        if self._layer_operators:
            return self._bred(elite, self.rates.bolder(boldness))
        rate = self.rates.bolder(boldness).flips
        children = mix_bits(self.space, elite, self.population_size, self._rng, rate=rate)
        if self._repair:
            return self.space.repair(children, self._factor.values)
        return children

    def _bred(self, elite: BoolArray, rates: Rates) -> BoolArray:
        factor = self._factor.values
        shape = (self._siblings, self.population_size, self.space.num_layers)
        origin = draw_layers(len(elite), shape, self._rng)
        inherited = self._counts(elite)[origin, np.arange(self.space.num_layers)]
        widths = shift_widths(inherited, self._rng, layers=rates.layers, sigma=rates.sigma)
        widths = np.clip(widths, self.space.grid.lowest, self.space.grid.size)
        first = self._promise(proportions(widths)).argmax(axis=0), np.arange(self.population_size)
        children = inherit_layers(self.space, elite, origin[first])
        children = swap_borderline(
            self.space, children, factor, self._rng, rate=rates.swap, noise=rates.noise
        )
        if self._repair:
            return self.space.repair(children, factor, widths=widths[first])
        return self._resized(children, widths[first])

    def _promise(self, inputs: FloatArray) -> FloatArray:
        """Return the promise of siblings, (S, P, D) -> (S, P)."""
        told = [one for one in self._archive.values() if math.isfinite(one.fitness.wvalues[0])]
        fitness = np.array([one.fitness.wvalues[0] for one in told])
        if len(inputs) == 1 or len(np.unique(fitness)) < 2:
            return np.zeros(inputs.shape[:2])
        counts = self._counts(stack(told, self.space.num_channels))
        model = PromiseModel(proportions(counts), fitness)
        return model.promise(inputs.reshape(-1, inputs.shape[-1])).reshape(inputs.shape[:2])

    def _counts(self, masks: BoolArray) -> FloatArray:
        # Without repair a layer may be empty, and widths are compared by their logs.
        return np.maximum(self.space.counts(masks), 1).astype(np.float64)

    @property
    def num_parents(self) -> int:
        """How many of the best candidates a generation is bred from."""
        return max(2, round(self.rates.parents * self.population_size))

    def _learn(self, cohort: Sequence[Individual]) -> None:
        survivors = self._ranked(self.population_size)
        if not survivors:
            return
        everyone = {one.key: one for one in [*survivors, *cohort]}
        self._factor.follow(
            stack(survivors[: self.num_parents], self.space.num_channels),
            stack(everyone.values(), self.space.num_channels),
        )

    def _memory(self) -> dict[str, Any]:
        return {"factor": self._factor.values.tolist(), "seeds": dict(self._seed_keys)}

    def _remember(self, memory: dict[str, Any]) -> None:
        self._factor.values = np.array(memory["factor"], dtype=np.float64)
        self._seed_keys = dict(memory["seeds"])
