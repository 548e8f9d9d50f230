"""The searches that a run may make, from the callback's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.search import GeneticSearch, Limits, ParetoSearch, SearchSpace


def genetic_search(space: SearchSpace, settings: SearchSettings) -> GeneticSearch:
    """Return a search for the best network within the budget."""
    return GeneticSearch(space, **_shared(settings))


def pareto_search(space: SearchSpace, settings: SearchSettings, smallest: float) -> ParetoSearch:
    """Return a search for the best networks at all costs from a share of the budget on."""
    return ParetoSearch(space, smallest=smallest, **_shared(settings))


def _shared(settings: SearchSettings) -> dict[str, Any]:
    return {
        "mode": settings.mode,
        "population_size": settings.population_size,
        "limits": Limits(
            settings.generations, settings.max_evaluations, settings.max_time, settings.patience
        ),
        "evaluation_factor": settings.evaluation_factor,
        "seed": settings.seed,
        "toolbox": settings.toolbox,
    }


def no_metric(
    monitor: str, evaluations: int, fitness: Mapping[str, float]
) -> MisconfigurationException:
    """Return the error of a search that has nothing to choose by.

    Args:
        monitor: the metric.
        evaluations: candidates that were evaluated.
        fitness: metrics of the uncut network ("dense") and of the best candidate ("chosen").
    """
    return MisconfigurationException(
        f"Expected `{monitor}` to be finite for at least one candidate, but of {evaluations} the"
        f" best one has {fitness['chosen']}, and the uncut network {fitness['dense']}: nothing was"
        " pruned. See whether training has diverged, or the metric is not defined on these"
        " validation batches; the search begins anew when the fit is resumed from a checkpoint."
    )
