"""What to try next: masks under exact budgets, found by ask and tell. No torch, no Lightning."""

from __future__ import annotations

from lightning_slimga.search.controls import HillClimbing, RandomSearch
from lightning_slimga.search.factor import EvaluationFactor
from lightning_slimga.search.front import Front, FrontPoint
from lightning_slimga.search.genetic import GeneticSearch
from lightning_slimga.search.pareto import ParetoSearch
from lightning_slimga.search.rates import Rates
from lightning_slimga.search.space import Budget, SearchSpace

__all__ = [
    "Budget",
    "EvaluationFactor",
    "Front",
    "FrontPoint",
    "GeneticSearch",
    "HillClimbing",
    "ParetoSearch",
    "RandomSearch",
    "Rates",
    "SearchSpace",
]
