"""The tables of docs/search.md that come from the Fashion-MNIST search benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.pages import DOCS, interval, put
from lightning_slimga.report.table import markdown_table

GENETIC = "genetic search"
PAGE = DOCS / "search.md"
Seeds = Sequence[dict[str, Any]]
"""The results of one setting, seed by seed: what was done, then contender, then numbers."""


def update(record: dict[str, Any]) -> str:
    """Put the tables into the page and return them."""
    results = {name: list(seeds.values()) for name, seeds in record["results"].items()}
    comparison, parts = comparisons(record["settings"], results), ablations(results)
    put(PAGE, "search-fashion", comparison)
    put(PAGE, "search-ablation", parts)
    return f"{comparison}\n\n{parts}"


def comparisons(settings: dict[str, Any], results: dict[str, Seeds]) -> str:
    """Return one table for each setting: every contender, before and after fine-tuning."""
    sections = []
    for name, seeds in results.items():
        done = complete(seeds, "mask")
        if done:
            sections += [headline(name, settings[name], done), contenders(done), own_seeds(done)]
    return "\n\n".join(sections)


def headline(name: str, setting: dict[str, Any], seeds: Seeds) -> str:
    """Return what was trained and how it does before the cut."""
    test = [100 * seed["network"]["full size"]["test"] for seed in seeds]
    zero = [100 * seed["network"]["full size"]["near_zero"] for seed in seeds]
    kind = f"L1/2 training, λ {setting['strength']:g}" if setting["strength"] else "dense training"
    return (
        f"**{name}**: {kind}, test accuracy {interval(test)} %, "
        f"{interval(zero)} % of γ below 0.01; {setting['share']:.0%} of the MACs kept; "
        f"{len(seeds)} seeds."
    )


def contenders(seeds: Seeds) -> str:
    """Return the table of the contenders, each beside the difference that the search makes."""
    tuned = complete(seeds, "tuned")
    header = ("test accuracy, %", "no fine-tuning", "genetic search is ahead by")
    if tuned:
        header += ("after fine-tuning", "genetic search is ahead by")
    rows = []
    for name in seeds[0]["mask"]:
        row = (name, *cells(seeds, "mask", name))
        if tuned:
            row += cells(tuned, "tuned", name)
        rows.append(row)
    rows.sort(key=lambda row: (row[0] == GENETIC, float(row[1].split(" ")[0])))
    return markdown_table(header, rows)


def cells(seeds: Seeds, what: str, name: str) -> tuple[str, str]:
    """Return the accuracy of a contender, and how far the genetic search is ahead of it."""
    digits = 2 if what == "tuned" else 1
    value = [100 * seed[what][name]["test"] for seed in seeds]
    ahead = [100 * seed[what][GENETIC]["test"] - v for seed, v in zip(seeds, value, strict=True)]
    difference = "" if name == GENETIC else interval(ahead, signed=True, digits=digits)
    return interval(value, digits=digits), difference


def own_seeds(seeds: Seeds) -> str:
    """Return what the search adds to the best mask that it started from, on its own images."""
    found = [seed["mask"][GENETIC] for seed in seeds]
    gain = [100 * (one["search_fitness"] - max(one["seeds"].values())) for one in found]
    return (
        "Over the best of its own seeds (thresholds and uniform cut), on the validation images "
        f"that it judges by, the search gains {interval(gain)} points."
    )


def ablations(results: dict[str, Seeds]) -> str:
    """Return the table of what each part of the search is worth, one column for each setting."""
    done = {name: complete(seeds, "ablation") for name, seeds in results.items()}
    done = {name: seeds for name, seeds in done.items() if seeds}
    if not done:
        return ""
    header = ("test accuracy, %", *(c for name in done for c in (name, "difference")))
    first = next(iter(done.values()))[0]["ablation"]
    rows = [(GENETIC, *row(done, lambda seed: seed["mask"][GENETIC]))]
    rows += [(name, *row(done, lambda seed, n=name: seed["ablation"][n])) for name in first]
    return markdown_table(header, rows)


def row(done: dict[str, Seeds], pick: Callable[[dict[str, Any]], dict[str, Any]]) -> list[str]:
    """Return accuracy and difference to the whole search for each setting."""
    result = []
    for seeds in done.values():
        value = [100 * pick(seed)["test"] for seed in seeds]
        whole = [100 * seed["mask"][GENETIC]["test"] for seed in seeds]
        lost = [v - w for v, w in zip(value, whole, strict=True)]
        result += [interval(value), interval(lost, signed=True) if any(lost) else ""]
    return result


def complete(seeds: Seeds, what: str) -> list[dict[str, Any]]:
    """Return the seeds for which every contender of that kind has been measured."""
    wanted = set().union(*(seed.get(what, {}) for seed in seeds))
    return [seed for seed in seeds if wanted and wanted <= set(seed.get(what, {}))]
