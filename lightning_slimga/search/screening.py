"""Screening: of several children, evaluate the one whose widths promise most.

Making a child costs microseconds, evaluating it costs a validation loop. A Gaussian process over
the layer widths of the told candidates (Rasmussen & Williams, Gaussian Processes for Machine
Learning, 2006, algorithm 2.1) predicts the fitness of children before anything is run; each child
that is evaluated is the most promising of a few siblings. Repair keeps the proportions of the
widths, so they say enough and siblings need no repair. What to rank by is ours:

    promise = mean + standard deviation

so that children in regions nobody has tried are not passed over.
"""

from __future__ import annotations

import numpy as np

from lightning_slimga.search.widths import FloatArray

_MOST = 150  # candidates the model is fitted to, the best ones
_LENGTHS = (1.0, 2.0, 4.0, 8.0)  # squared length scales, in median squared distances
_NOISES = (1e-3, 1e-2, 5e-2)  # variance of the noise, in variances of the signal


def proportions(widths: FloatArray) -> FloatArray:
    """Return the logs of positive widths, shape (..., L), less their mean over the layers."""
    logs = np.log(widths)
    return np.asarray(logs - logs.mean(axis=-1, keepdims=True), dtype=np.float64)


class PromiseModel:
    """Predicts fitness from what is known of a candidate before it is evaluated.

    Args:
        inputs: description of the told candidates, for instance `proportions`, shape (N, D).
        fitness: their fitness, higher is better, finite, shape (N,), at least two different values.
    """

    def __init__(self, inputs: FloatArray, fitness: FloatArray) -> None:
        best = np.argsort(-fitness, kind="stable")[:_MOST]
        self._inputs = inputs[best]
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

    def promise(self, inputs: FloatArray) -> FloatArray:
        """Return mean plus standard deviation of the fitness at `inputs`, (M, D) -> (M,)."""
        squared = _squared_distances(inputs, self._inputs) / self._unit
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
    factor = np.asarray(np.linalg.cholesky(kernel), dtype=np.float64)
    half = np.asarray(np.linalg.solve(factor, targets), dtype=np.float64)
    variance = float(half @ half) / count  # the maximiser, in closed form
    likelihood = -0.5 * count * np.log(variance) - float(np.log(np.diag(factor)).sum())
    weights = np.asarray(np.linalg.solve(factor.T, half), dtype=np.float64)
    return likelihood, length, factor, weights, variance


def _squared_distances(left: FloatArray, right: FloatArray) -> FloatArray:
    products = left @ right.T
    squared: FloatArray = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * products
    return np.maximum(squared, 0.0)
