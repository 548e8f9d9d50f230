"""The genetic search with one of its parts taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from deap import base

from lightning_slimga.search import GeneticSearch, Rates, SearchSpace
from lightning_slimga.search.operators import rank_weights
from lightning_slimga.search.repair import resize
from lightning_slimga.search.seeds import random_masks, random_widths, rankings
from lightning_slimga.search.widths import BoolArray, FloatArray

PARTS = ("evaluation_factor", "layer_operators", "seeds", "screening", "repair")
_FLIPS = 0.02  # share of the bits that a mutation flips without layer operators


def without(
    part: str, space: SearchSpace, *, rates: Rates | None = None, **options: Any
) -> GeneticSearch:
    """Return a search without one of the `PARTS`.

    Args:
        part: evaluation_factor (stays the normalised score), layer_operators (single bits are mixed
            and flipped), seeds (random widths alone), screening (every child is evaluated) or
            repair (what is over budget is rejected, unevaluated).
        space: what to search.
        rates: constants of the variation.
        options: other arguments of `GeneticSearch`.
    """
    kinds = {"seeds": WithoutSeeds, "repair": WithoutRepair}
    rates = rates or Rates()
    if part == "screening":
        rates = replace(rates, siblings=1)
    toolbox = bit_operators() if part == "layer_operators" else None
    return kinds.get(part, GeneticSearch)(
        space,
        rates=rates,
        toolbox=toolbox,
        evaluation_factor=part != "evaluation_factor",
        **options,
    )


def bit_operators() -> base.Toolbox:
    """Return uniform crossover of two parents and bit flips, which know nothing of layers."""
    toolbox = base.Toolbox()
    toolbox.register("mate", mix_bits)
    toolbox.register("mutate", flip_bits, rate=_FLIPS)
    return toolbox


def mix_bits(
    parents: BoolArray, count: int, space: SearchSpace, rng: np.random.Generator
) -> BoolArray:
    """Take each bit of a child from one of two parents, drawn by their rank."""
    first, second = rng.choice(len(parents), (2, count), p=rank_weights(len(parents)))
    heads = rng.random((count, space.num_channels)) < 0.5
    return np.where(heads, parents[first], parents[second])


def flip_bits(
    children: BoolArray, space: SearchSpace, rng: np.random.Generator, rate: float
) -> BoolArray:
    """Flip a share of the bits."""
    return children ^ (rng.random(children.shape) < rate)


class WithoutSeeds(GeneticSearch):
    """Starts from random widths alone."""

    def _first(self) -> BoolArray:
        return random_masks(self.space, self._factor.values, self._rng, self.population_size)


class WithoutRepair(GeneticSearch):
    """Rejects children that are over budget; widths are rounded to legal ones."""

    def _first(self) -> BoolArray:
        widths = random_widths(self.space, self._rng, self.population_size)
        everything = np.ones((len(widths), self.space.num_channels), dtype=np.bool_)
        seeds = np.stack(list(rankings(self.space).values()))
        return np.concatenate([seeds, self._accepted(everything, widths)])

    def _repaired(self, children: BoolArray) -> BoolArray:
        return self._accepted(children, self.space.counts(children).astype(np.float64))

    def _accepted(self, masks: BoolArray, widths: FloatArray) -> BoolArray:
        counts = self.space.grid.counts(self.space.grid.levels(widths))
        legal = resize(masks, counts, self.space.layer_ids, self._factor.values)
        return legal[self.space.feasible(legal)]
