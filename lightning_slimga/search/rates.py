"""The constants of the variation."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rates:
    """Constants of the variation. They are ours, tuned with `benchmarks/search_quality.py`.

    Attributes:
        parents: share of the population size that breeds.
        layers: layers whose width a mutation changes, on average.
        sigma: standard deviation of the log of that change.
        swap: share of the layers in which borderline channels are chosen anew.
        noise: noise on the factor when they are.
        learning: rate of the evaluation factor.
        siblings: mutations from which screening takes the one that is evaluated; 1 is no screening.

    >>> Rates(sigma=0.2).bolder(2.0).sigma
    0.4
    """

    parents: float = 1 / 3
    layers: float = 4.0
    sigma: float = 0.3
    swap: float = 0.1
    noise: float = 0.15
    learning: float = 0.3
    siblings: int = 32

    def bolder(self, boldness: float) -> Rates:
        """Return rates of stronger mutations, less screened, for when others bring nothing new."""
        return replace(
            self,
            sigma=self.sigma * boldness,
            swap=min(1.0, self.swap * boldness),
            noise=self.noise * boldness,
            siblings=max(1, int(self.siblings / boldness)),
        )
