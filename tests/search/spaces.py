"""Small search spaces and metrics whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lightning_slimga.search import Budget, SearchSpace


def chain_macs(pixels: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """MACs of a chain of 3x3 convolutions: each layer times the one before it."""

    def cost(counts: np.ndarray) -> np.ndarray:
        inputs = np.concatenate([np.ones_like(counts[:, :1]), counts[:, :-1]], axis=1)
        return (9 * np.array(pixels) * inputs * counts).sum(axis=1)

    return cost


def chain_params(counts: np.ndarray) -> np.ndarray:
    """Weights of the same chain, and two numbers per channel of a normalisation."""
    inputs = np.concatenate([np.ones_like(counts[:, :1]), counts[:, :-1]], axis=1)
    return (9 * inputs * counts + 2 * counts).sum(axis=1)


def layers_of(sizes: Sequence[int]) -> list[tuple[str, slice]]:
    """Layers l0, l1, ... that follow each other."""
    ends = np.cumsum(sizes)
    return [
        (f"l{i}", slice(int(end - size), int(end)))
        for i, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]


def make_space(
    sizes: Sequence[int] = (8, 12, 16),
    share: float = 0.5,
    *,
    seed: int = 0,
    params: float | None = None,
    **limits: int,
) -> SearchSpace:
    """A chain with random scores and a MACs budget (and one on parameters if `params`)."""
    full = np.array([sizes])
    macs = chain_macs([4 ** (len(sizes) - i) for i in range(len(sizes))])
    budgets = [Budget("macs", share * macs(full)[0], macs)]
    if params is not None:
        budgets.append(Budget("params", params * chain_params(full)[0], chain_params))
    scores = np.random.default_rng(seed).exponential(1.0, sum(sizes))
    return SearchSpace(layers_of(sizes), scores, budgets, **limits)


def hidden_metric(space: SearchSpace, seed: int = 5) -> Callable[[np.ndarray], float]:
    """Accuracy-like metric: layers differ in sensitivity, channels in a hidden importance."""
    rng = np.random.default_rng(seed)
    importance = rng.exponential(1.0, space.num_channels)
    total = np.add.reduceat(importance, space.starts)
    sensitivity = rng.lognormal(0.0, 1.0, space.num_layers)

    def metric(mask: np.ndarray) -> float:
        kept = np.add.reduceat(importance * mask, space.starts) / total
        return float(np.exp(-(sensitivity * (1 - kept) ** 2).sum()))

    return metric


def drive(search, metric, most: int = 10_000) -> None:
    """Ask and tell, one candidate at a time, until done or `most` are told."""
    while not search.done and search.evaluations < most:
        mask = search.ask()[0]
        search.tell([mask], [metric(mask)])
