"""Operators of your own in the genetic search: `python examples/custom_operator.py`.

`mate`, `mutate`, `select` and `map` are registered in a DEAP toolbox, as always in DEAP; those that
are left out stay ours. How each is called says `lightning_slimga.search.breeding`. The same toolbox
goes to the callback, `GeneticPruneCallback(..., toolbox=toolbox)`; only `map` does not, because
there candidates run inside the fit.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from deap import base
from numpy.typing import NDArray

from lightning_slimga.search import Budget, Limits, SearchSpace, maximize

Masks = NDArray[np.bool_]
CALLS: Counter[str] = Counter()


def two_parents(parents: Masks, count: int, space: SearchSpace, rng: np.random.Generator) -> Masks:
    """Take each layer of a child from one of two parents: (E, C) -> (count, C)."""
    CALLS["children"] += count
    first, second = parents[rng.integers(len(parents), size=(2, count))]
    from_first = rng.random((count, space.num_layers)) < 0.5
    return np.where(from_first[:, space.layer_ids], first, second)


def flip(children: Masks, space: SearchSpace, rng: np.random.Generator, share: float) -> Masks:
    """Flip a share of the bits. What that costs does not matter: children are repaired."""
    return children ^ (rng.random(children.shape) < share)


def make_space() -> SearchSpace:
    """Three layers of 16 channels, of which half may stay."""
    layers = [(f"layer{i}", slice(16 * i, 16 * i + 16)) for i in range(3)]
    budget = Budget("channels", 24, lambda counts: counts.sum(axis=1))
    return SearchSpace(layers, np.ones(48), [budget])


def metric(mask: Masks) -> float:
    """Stand for a validation: every third channel matters, and more so in later layers."""
    wanted = np.arange(48) % 3 == 0
    return float((mask & wanted) @ np.repeat([1.0, 2.0, 3.0], 16))


def main() -> None:
    """Search with operators of our own, candidates evaluated by threads."""
    toolbox = base.Toolbox()
    toolbox.register("mate", two_parents)
    toolbox.register("mutate", flip, share=0.05)
    space = make_space()
    with ThreadPoolExecutor() as pool:
        toolbox.register("map", pool.map)  # or that of a process pool, or of a cluster
        search = maximize(
            metric, space, toolbox=toolbox, population_size=12, limits=Limits(generations=6)
        )
    print(search)
    print(f"children of two parents: {CALLS['children']}")
    mask, _ = search.best
    print(f"channels: {mask.sum()} of at most {space.budgets[0].limit}")
    for entry in search.history:
        print("generation {generation}: best {best:.0f}, mean {mean:.1f}".format(**entry))


if __name__ == "__main__":
    main()
