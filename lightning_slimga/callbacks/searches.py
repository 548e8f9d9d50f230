"""The searches that a run may make, from the callback's arguments."""

from __future__ import annotations

from lightning_slimga.callbacks.settings import SearchSettings
from lightning_slimga.search import GeneticSearch, ParetoSearch, SearchSpace


def genetic_search(space: SearchSpace, settings: SearchSettings) -> GeneticSearch:
    """Return a search for the best network within the budget."""
    return GeneticSearch(
        space,
        mode=settings.mode,
        population_size=settings.population_size,
        generations=settings.generations,
        max_evaluations=settings.max_evaluations,
        max_time=settings.max_time,
        patience=settings.patience,
        evaluation_factor=settings.evaluation_factor,
        seed=settings.seed,
    )


def pareto_search(space: SearchSpace, settings: SearchSettings, smallest: float) -> ParetoSearch:
    """Return a search for the best networks at all costs from a share of the budget on."""
    return ParetoSearch(
        space,
        mode=settings.mode,
        smallest=smallest,
        population_size=settings.population_size,
        generations=settings.generations,
        max_evaluations=settings.max_evaluations,
        max_time=settings.max_time,
        evaluation_factor=settings.evaluation_factor,
        seed=settings.seed,
    )
