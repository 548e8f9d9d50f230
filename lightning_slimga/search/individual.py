"""A candidate: its mask and its fitness."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from deap import base

from lightning_slimga.search.widths import BoolArray


class Highest(base.Fitness):  # type: ignore[misc]
    """Fitness of a metric that should be high."""

    weights = (1.0,)


class Lowest(base.Fitness):  # type: ignore[misc]
    """Fitness of a metric that should be low."""

    weights = (-1.0,)


class HighestAtCost(base.Fitness):  # type: ignore[misc]
    """Fitness of a metric that should be high at a cost that should be low."""

    weights = (1.0, -1.0)


class LowestAtCost(base.Fitness):  # type: ignore[misc]
    """Fitness of a metric that should be low at a cost that should be low."""

    weights = (-1.0, -1.0)


FITNESS: dict[str, type[base.Fitness]] = {"max": Highest, "min": Lowest}
FITNESS_AT_COST: dict[str, type[base.Fitness]] = {"max": HighestAtCost, "min": LowestAtCost}
SIGN: dict[str, float] = {mode: kind.weights[0] for mode, kind in FITNESS.items()}
"""What turns a metric of that mode into one that should be high."""


@dataclass
class Individual:
    """One mask and what is known about it.

    Attributes:
        mask: True = keep, shape (C,).
        fitness: DEAP fitness of the metric and the costs; not valid until the metric is known.
        metric: the metric as told, NaN included; None until then.
        costs: further objectives, known without evaluation.
    """

    mask: BoolArray
    fitness: base.Fitness
    metric: float | None = None
    costs: tuple[float, ...] = ()

    def __repr__(self) -> str:
        return f"Individual({self.mask.sum()} of {self.mask.size} channels, metric {self.metric})"

    @property
    def key(self) -> str:
        """The mask as text: equal masks, and no others, have equal keys."""
        return encode_mask(self.mask)

    @property
    def value(self) -> float:
        """The metric as a number, NaN as long as there is none."""
        return math.nan if self.metric is None else self.metric

    @property
    def is_finite(self) -> bool:
        """Whether there is a metric that is a number and not infinite."""
        return math.isfinite(self.value)

    def rate(self, metric: float) -> None:
        """Set the fitness. A metric that is not finite counts as worst."""
        self.metric = float(metric)
        worst = -math.inf * self.fitness.weights[0]
        self.fitness.values = (self.metric if math.isfinite(metric) else worst, *self.costs)


def encode_mask(mask: BoolArray) -> str:
    """Return a mask as hexadecimal text, 4 channels a character."""
    return np.packbits(mask).tobytes().hex()


def decode_mask(text: str, num_channels: int) -> BoolArray:
    """Return the mask of shape (num_channels,) that `encode_mask` has written."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=num_channels)
    return bits.astype(np.bool_)


def stack(individuals: Iterable[Individual], num_channels: int) -> BoolArray:
    """Return the masks of the individuals, shape (P, C)."""
    masks = [individual.mask for individual in individuals]
    return np.array(masks, dtype=np.bool_).reshape(len(masks), num_channels)
