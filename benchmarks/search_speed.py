"""Time of cost and repair, and of a whole generation, for large populations.

    python -m benchmarks.search_speed

60 layers with 20,000 channels together, a population of 64, budgets on MACs and on parameters.
"Repair" is what `SearchSpace.repair` takes for the population, all cost calls included;
"generation" is everything the search does between the last metric and the next question.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_slimga.search import Budget, GeneticSearch, Limits, SearchSpace

LAYERS, CHANNELS, POPULATION, REPEATS = 60, 20_000, 64, 9


def make_space(round_to: int, share: float) -> SearchSpace:
    """Return a chain of convolutions over four resolutions."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(32, 512, LAYERS)
    size = np.floor(weights / weights.sum() * CHANNELS).astype(np.int64)
    size[-1] += CHANNELS - size.sum()
    pixels = np.repeat([3136, 784, 196, 49], LAYERS // 4)

    def products(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        inputs = np.concatenate([np.full_like(counts[:, :1], 3), counts[:, :-1]], axis=1)
        return 9 * inputs * counts

    def macs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return (products(counts) * pixels).sum(axis=1)

    def params(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return (products(counts) + 2 * counts).sum(axis=1)

    ends = np.cumsum(size)
    layers = [
        (f"layer{i}", slice(int(e - s), int(e)))
        for i, (e, s) in enumerate(zip(ends, size, strict=True))
    ]
    budgets = [
        Budget("macs", share * float(macs(size[None])[0]), macs),
        Budget("params", 0.4 * float(params(size[None])[0]), params),
    ]
    return SearchSpace(layers, rng.exponential(1.0, CHANNELS), budgets, round_to=round_to)


def milliseconds(action: Callable[[], object]) -> float:
    """Return the median processor time of an action, whatever else the machine does."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        action()
        times.append(1e3 * (time.process_time() - start))
    return float(np.median(times))


def generation(space: SearchSpace) -> Callable[[], None]:
    """Return an action that takes a search through one generation."""
    search = GeneticSearch(space, population_size=POPULATION, limits=Limits(REPEATS + 1))
    rng = np.random.default_rng(0)

    def step() -> None:
        masks = search.ask()
        search.tell(masks, rng.random(len(masks)).tolist())

    return step


def main() -> None:
    """Print the table."""
    print("| round_to | MACs kept | repair, ms | generation, ms |")
    print("|---|---|---|---|")
    for round_to in (1, 8):
        for share in (0.5, 0.2):
            space = make_space(round_to, share)
            rng = np.random.default_rng(1)
            chance = rng.random((POPULATION, 1)) * rng.random((POPULATION, LAYERS))
            masks = rng.random((POPULATION, CHANNELS)) < chance[:, space.layer_ids]
            factor = rng.random(CHANNELS)
            repair = milliseconds(lambda: space.repair(masks, factor))  # noqa: B023
            whole = milliseconds(generation(space))
            print(f"| {round_to} | {share:.0%} | {repair:.0f} | {whole:.0f} |", flush=True)


if __name__ == "__main__":
    main()
