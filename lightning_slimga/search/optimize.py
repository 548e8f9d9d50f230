"""A whole search in one call, where `f` says what a mask is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_slimga.search.genetic import GeneticSearch
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray


def maximize(f: Callable[[BoolArray], float], space: SearchSpace, **options: Any) -> GeneticSearch:
    """Search for the mask under budget with the highest value of `f`.

    A generation at a time is evaluated by `toolbox.map`, Python's `map` unless another one is
    registered. What the search finds depends on the values alone, not on who evaluates them.

    Args:
        f: the metric of one mask, boolean, True = keep, shape (C,). A value that is not finite
            counts as worst.
        space: what to search.
        options: those of :class:`GeneticSearch`, but for `mode`.

    Returns:
        The search when it has ended: `best`, `elite`, `history` and `stop_reason` tell of it.

    >>> import numpy as np
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from deap import base
    >>> from lightning_slimga.search import Budget, Limits, SearchSpace, maximize
    >>> worth = np.array([1, 9, 2, 8, 3, 7])
    >>> half = Budget("channels", 3, lambda counts: counts.sum(axis=1))
    >>> space = SearchSpace([("a", slice(0, 3)), ("b", slice(3, 6))], np.ones(6), [half])
    >>> toolbox = base.Toolbox()
    >>> with ThreadPoolExecutor(2) as pool:
    ...     toolbox.register("map", pool.map)
    ...     search = maximize(lambda mask: worth[mask].sum(), space, toolbox=toolbox)
    >>> search.best
    (array([False,  True, False,  True, False,  True]), 24.0)
    """
    return _run(f, GeneticSearch(space, mode="max", **options))


def minimize(f: Callable[[BoolArray], float], space: SearchSpace, **options: Any) -> GeneticSearch:
    """Search for the mask under budget with the lowest value of `f`; otherwise as `maximize`.

    >>> import numpy as np
    >>> from lightning_slimga.search import Budget, SearchSpace, minimize
    >>> half = Budget("channels", 3, lambda counts: counts.sum(axis=1))
    >>> space = SearchSpace([("a", slice(0, 3)), ("b", slice(3, 6))], np.ones(6), [half])
    >>> minimize(lambda mask: mask[:3].sum(), space).best[1]
    1.0
    """
    return _run(f, GeneticSearch(space, mode="min", **options))


def _run(f: Callable[[BoolArray], float], search: GeneticSearch) -> GeneticSearch:
    while not search.done:
        masks = search.ask()
        search.tell(masks, list(search.toolbox.map(f, masks)))
    return search
