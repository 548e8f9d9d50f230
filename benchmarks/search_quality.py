"""What the genetic search finds in 216 evaluations, beside seeds, controls and ablations.

    python -m benchmarks.search_quality                        # about a minute
    python -m benchmarks.search_quality --networks 20 --depths 6 12 30
    python -m benchmarks.search_quality --only "without screening"
    python -m benchmarks.search_quality --rates sigma=0.2 siblings=8

Synthetic networks of several depths (benchmarks/search_landscape.py) at 35 % of the MACs. Reported
is the accuracy, free of the error that the search saw, of the mask that it holds best: mean over
the networks, and the half-width of the 95 % interval of the difference to random search.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.search_ablations import PARTS, without
from benchmarks.search_controls import HillClimbing, RandomSearch
from benchmarks.search_landscape import Landscape
from lightning_slimga.search import GeneticSearch, Limits, Rates, SearchSpace
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.seeds import rankings

EVALUATIONS = 216
LIMITS = Limits(generations=EVALUATIONS, max_evaluations=EVALUATIONS)
Build = Callable[[SearchSpace, int], AskTellSearch]


def run(landscape: Landscape, search: AskTellSearch) -> float:
    """Return the true accuracy of what the search finds."""
    while not search.done:
        masks = search.ask()
        search.tell(masks, [landscape.measure(mask) for mask in masks])
    return float(landscape.accuracy(search.best[0][None])[0])


def ranking(name: str) -> Callable[[Landscape, int], float]:
    """Return the contender that only takes the seed of that name."""
    return lambda landscape, seed: float(
        landscape.accuracy(rankings(landscape.space)[name][None])[0]
    )


def searching(build: Build) -> Callable[[Landscape, int], float]:
    """Return the contender that searches."""
    return lambda landscape, seed: run(landscape, build(landscape.space, seed))


def contenders(rates: Rates) -> dict[str, Callable[[Landscape, int], float]]:
    """Return everything that is compared, by name."""

    def genetic(space: SearchSpace, seed: int) -> AskTellSearch:
        return GeneticSearch(space, seed=seed, limits=LIMITS, rates=rates)

    def ablated(part: str) -> Callable[[Landscape, int], float]:
        return searching(
            lambda space, seed: without(part, space, seed=seed, limits=LIMITS, rates=rates)
        )

    return {
        "random search": searching(
            lambda space, seed: RandomSearch(space, seed=seed, limits=LIMITS)
        ),
        "gamma threshold": ranking("gamma_threshold"),
        "gamma per cost": ranking("gamma_per_cost"),
        "uniform": ranking("uniform"),
        "hill climbing": searching(
            lambda space, seed: HillClimbing(space, seed=seed, limits=LIMITS)
        ),
        "genetic search": searching(genetic),
        **{f"without {part.replace('_', ' ')}": ablated(part) for part in PARTS},
    }


def parse_rates(pairs: list[str]) -> Rates:
    """Return the rates with some replaced, from texts like "sigma=0.2"."""
    defaults = Rates()
    values = dict(pair.split("=") for pair in pairs)
    return Rates(**{name: type(getattr(defaults, name))(v) for name, v in values.items()})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", type=int, default=8, help="networks per depth")
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 12, 30])
    parser.add_argument("--only", nargs="+", help="names of the contenders to run")
    parser.add_argument("--rates", nargs="+", default=[], help="constants, as sigma=0.2")
    options = parser.parse_args()
    chosen = contenders(parse_rates(options.rates))
    names = ["random search", *(n for n in options.only or chosen if n != "random search")]
    seeds = range(options.networks)
    landscapes = {depth: [Landscape(s, depth) for s in seeds] for depth in options.depths}
    print("| accuracy, % |" + "".join(f" {depth} layers |" for depth in options.depths) + " gain |")
    print("|---|" + "---|" * (len(options.depths) + 1))
    baseline = np.zeros(0)
    for name in names:
        values = np.array(
            [[100 * chosen[name](x, s) for s, x in enumerate(landscapes[d])] for d in landscapes]
        )
        baseline = values if not baseline.size else baseline
        gain = (values - baseline).ravel()
        half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        cells = "".join(f" {mean:.1f} |" for mean in values.mean(axis=1))
        print(f"| {name} |{cells} {gain.mean():+.1f} ± {half:.1f} |", flush=True)


if __name__ == "__main__":
    main()
