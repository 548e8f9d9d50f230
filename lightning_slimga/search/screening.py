"""Screening: of several children, evaluate the one whose widths promise most.

Making a child costs microseconds, evaluating it costs a validation loop. A Gaussian process over
the log-widths of the told candidates (Rasmussen & Williams, Gaussian Processes for Machine
Learning, 2006, algorithm 2.1) predicts the fitness of children before anything is run; each child
that is evaluated is the most promising of a few siblings. What to rank by is ours:

    promise = mean + standard deviation

so that children in regions nobody has tried are not passed over.
"""

from __future__ import annotations

import numpy as np

from lightning_slimga.search.widths import FloatArray

_MOST = 150  # candidates the model is fitted to, the best ones
_LENGTHS = (1.0, 2.0, 4.0, 8.0)  # squared length scales, in median squared distances
_NOISES = (1e-3, 1e-2, 5e-2)  # variance of the noise, in variances of the signal


class WidthModel:
    """Predicts fitness from layer widths.

    Args:
        widths: kept channels of told candidates, shape (N, L), positive.
        fitness: their fitness, higher is better, finite, shape (N,), at least two different values.
    """

    def __init__(self, widths: FloatArray, fitness: FloatArray) -> None:
        best = np.argsort(-fitness, kind="stable")[:_MOST]
        self._inputs = np.log(widths[best])
        # How bad the bad ones are would bend the model where it matters.
        floor = np.median(fitness[best]) - 2 * fitness[best].std()
        targets = np.maximum(fitness[best], floor)
        self._mean, self._scale = targets.mean(), targets.std()
        squared = _squared_distances(self._inputs, self._inputs)
        self._unit = max(float(np.median(squared)), 1e-12)
        standard = (targets - self._mean) / self._scale
        fits = [
            _fit(squared / self._unit, standard, length, noise)
            for length in _LENGTHS
            for noise in _NOISES
        ]
        _, self._length, self._factor, self._weights, self._variance = max(
            fits, key=lambda fit: fit[0]
        )

    def promise(self, widths: FloatArray) -> FloatArray:
        """Return mean plus standard deviation of the fitness at `widths`, (M, L) -> (M,)."""
        squared = _squared_distances(np.log(widths), self._inputs) / self._unit
        kernel = np.exp(-squared / (2 * self._length))
        mean = kernel @ self._weights
        explained = (np.linalg.solve(self._factor, kernel.T) ** 2).sum(axis=0)
        deviation = np.sqrt(self._variance * np.maximum(1 - explained, 0))
        result: FloatArray = self._mean + self._scale * (mean + deviation)
        return result


def _fit(
    squared: FloatArray, targets: FloatArray, length: float, noise: float
) -> tuple[float, float, FloatArray, FloatArray, float]:
    """Return log marginal likelihood, length, Cholesky factor, weights and signal variance."""
    count = len(targets)
    kernel = np.exp(-squared / (2 * length)) + noise * np.eye(count)
    factor: FloatArray = np.linalg.cholesky(kernel)
    half: FloatArray = np.linalg.solve(factor, targets)
    variance = float(half @ half) / count  # the maximiser, in closed form
    likelihood = -0.5 * count * np.log(variance) - float(np.log(np.diag(factor)).sum())
    weights: FloatArray = np.linalg.solve(factor.T, half)
    return likelihood, length, factor, weights, variance


def _squared_distances(left: FloatArray, right: FloatArray) -> FloatArray:
    products = left @ right.T
    squared: FloatArray = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * products
    return np.maximum(squared, 0.0)
