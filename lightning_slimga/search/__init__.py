"""WHAT to try next: masks under exact budgets, found by ask and tell. NumPy and DEAP only.

`GeneticSearch` asks for masks and is told their metric; `maximize` and `minimize` do that for a
function. The operators are those of a DEAP toolbox, and anybody's may take their place.

- ``space``, ``widths``, ``repair``: which masks there are, and the nearest one that meets a budget.
- ``ask_tell``, ``stopping``: the protocol of all searches, their state, and when they end.
- ``breeding``, ``operators``, ``rates``: select, mate, mutate; how strongly.
- ``genetic``, ``pareto``: the best mask; the best ones at every cost.
- ``optimize``: a whole search in one call.
- ``factor``, ``screening``, ``seeds``: what is known of channels, of widths, and before any search.
- ``individual``, ``front``: a candidate with its fitness; those that nobody beats, as plain data.
- ``racing``: who is clearly behind does not run to the end of the validation data.
"""

from __future__ import annotations

from lightning_slimga.search.front import Front, FrontPoint
from lightning_slimga.search.genetic import GeneticSearch
from lightning_slimga.search.optimize import maximize, minimize
from lightning_slimga.search.pareto import ParetoSearch
from lightning_slimga.search.rates import Rates
from lightning_slimga.search.space import Budget, SearchSpace
from lightning_slimga.search.stopping import Limits

__all__ = [
    "Budget",
    "Front",
    "FrontPoint",
    "GeneticSearch",
    "Limits",
    "ParetoSearch",
    "Rates",
    "SearchSpace",
    "maximize",
    "minimize",
]
