"""How long a network of any widths takes, as a formula fitted to measurements.

    latency(kept) = w_0 + Σ_m w_m · MACs_m(kept) + Σ_l w_l · kept_l,   all w >= 0

with the MACs of each module m and the kept channels of each layer l: arithmetic, memory traffic
(which goes with the channels), and what a call costs whatever its size. No weight is negative, so
no network gets faster by a channel more, and a population costs one matrix product: a limit like
any other for the search. The form is ours; the weights are those of least squared relative errors
(Lawson & Hanson, "Solving least squares problems", 1974, chapter 23).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_slimga.graph.cost import Cost, Counts

Values = npt.NDArray[np.float64]

_FOLDS = 5
_ROUNDS = 8


class LatencyModel:
    """Predicts milliseconds from kept channels.

    Args:
        cost: the network's cost.
        full: channels of the full network, shape (layers,).
        weights: of the constant, the modules and the layers, milliseconds at full size; >= 0.
        full_ms: measured milliseconds of the full network.
        error: median relative error on networks that were not fitted to.

    Examples:
        >>> from lightning_slimga.graph.cost import LinearSize, Polynomial, Term
        >>> macs = Polynomial([Term("linear", 10, (LinearSize(0, ((0, 1),)),))], num_layers=1)
        >>> weights = np.array([0.5, 1.5, 1.0])  # the call, the MACs, the channels
        >>> model = LatencyModel(Cost(macs, macs), np.array([8]), weights, full_ms=3.0, error=0.0)
        >>> model(np.array([[8], [4]])).tolist()
        [3.0, 1.75]
    """

    def __init__(
        self, cost: Cost, full: Counts, weights: Values, full_ms: float, error: float
    ) -> None:
        self.full_ms, self.error = full_ms, error
        self._cost, self._full, self._weights = cost, full, weights

    def __call__(self, counts: Counts) -> Values:
        """Milliseconds of networks with these kept channels, (population, layers) -> (population,).

        Never falls when a layer gets wider.
        """
        result: Values = _features(self._cost, self._full, counts) @ self._weights
        return result

    @classmethod
    def fitted(
        cls, cost: Cost, full: Counts, counts: Counts, milliseconds: Values, full_ms: float
    ) -> LatencyModel:
        """Fit the weights.

        Args:
            cost: the network's cost.
            full: channels of the full network, shape (layers,).
            counts: kept channels of the measured networks, shape (N, layers).
            milliseconds: what they took, positive, shape (N,).
            full_ms: what the full network took; it counts as much as all others together.
        """
        inputs = _features(cost, full, np.concatenate([counts, full[None]]))
        targets = np.append(milliseconds, full_ms)
        importance = np.append(np.ones(len(counts)), len(counts) ** 0.5)

        def weights(rows: npt.NDArray[np.bool_]) -> Values:
            return _robust_fit(inputs[rows], targets[rows], importance[rows])

        fold = np.append(np.arange(len(counts)) % _FOLDS, -1)
        errors = [
            np.abs(inputs[fold == k] @ weights(fold != k) / targets[fold == k] - 1)
            for k in range(min(_FOLDS, len(counts)))
        ]
        everything = weights(np.ones(len(targets), dtype=np.bool_))
        return cls(cost, full, everything, full_ms, float(np.median(np.concatenate(errors))))

    def state_dict(self) -> dict[str, Any]:
        """Return the fit as plain data."""
        return {
            "weights": self._weights.tolist(),
            "full_ms": self.full_ms,
            "error": self.error,
        }

    @classmethod
    def restored(cls, cost: Cost, full: Counts, state: dict[str, Any]) -> LatencyModel:
        """Rebuild a model of the same network from `state_dict`."""
        weights = np.array(state["weights"], dtype=np.float64)
        return cls(cost, full, weights, state["full_ms"], state["error"])


def _features(cost: Cost, full: Counts, counts: Counts) -> Values:
    """Constant, MACs by module, channels by layer: shares of the full network's, (P, features)."""
    macs = cost.macs.terms(np.concatenate([full[None], counts])).astype(np.float64)
    names = {name: i for i, name in enumerate(dict.fromkeys(cost.macs.modules))}
    by_module = np.zeros((len(macs), len(names)))
    np.add.at(by_module.T, [names[name] for name in cost.macs.modules], macs.T)
    by_module = by_module[1:] / np.maximum(by_module[0], 1.0)
    return np.concatenate([np.ones((len(counts), 1)), by_module, counts / full], axis=1)


def _robust_fit(inputs: Values, targets: Values, importance: Values) -> Values:
    """Least squares of relative errors, in which outliers count by size and not by its square.

    Weights are repeatedly taken from the last fit (Huber, "Robust statistics", 1981, section 7.8).
    Errors are relative to what is predicted: relative to what was measured, one measurement that
    is far too small would outweigh all others.
    """
    scale = importance
    for _ in range(_ROUNDS):
        weights = nonnegative_least_squares(inputs * scale[:, None], targets * scale)
        predicted = np.maximum(inputs @ weights, 1e-3 * targets.max())
        errors = np.abs(targets / predicted - 1)
        usual = max(1.345 * 1.4826 * float(np.median(errors)), 1e-9)
        scale = importance / predicted * np.sqrt(np.minimum(1, usual / np.maximum(errors, 1e-12)))
    return weights


def nonnegative_least_squares(matrix: Values, target: Values) -> Values:
    """Return x >= 0 that minimises |matrix @ x - target| (Lawson & Hanson 1974, algorithm NNLS).

    Args:
        matrix: shape (N, D).
        target: shape (N,).
    """
    columns = matrix.shape[1]
    x, passive = np.zeros(columns), np.zeros(columns, dtype=np.bool_)
    tolerance = 1e-10 * float(np.abs(matrix.T @ target).max(initial=0.0))
    for _ in range(3 * columns):  # rounding can make columns that are nearly equal take turns
        descent = np.where(passive, -np.inf, matrix.T @ (target - matrix @ x))
        best = int(descent.argmax())
        if descent[best] <= tolerance:
            break
        passive[best] = True
        x = _along_the_border(matrix, target, x, passive)
    return x


def _along_the_border(
    matrix: Values, target: Values, x: Values, passive: npt.NDArray[np.bool_]
) -> Values:
    """Solve for the passive variables; those that would be negative stop at 0 and leave the set."""
    while passive.any():
        solution = np.zeros_like(x)
        solution[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
        negative = passive & (solution <= 0)
        if not negative.any():
            return solution
        step = (x[negative] / (x[negative] - solution[negative])).min()
        x = x + step * (solution - x)
        passive &= ~(negative & (x <= 1e-12 * x.max()))
        x = np.where(passive, x, 0.0)
    return np.zeros_like(x)
