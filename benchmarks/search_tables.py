"""The tables of docs/search.md that come from the Fashion-MNIST search benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.pages import DOCS, interval, put
from lightning_slimga.text import markdown_table

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
        searched = having(seeds, "mask", GENETIC)
        if searched:
            sections.append(headline(name, settings[name], searched))
            sections += [contenders(searched), own_seeds(searched)]
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
    header = ("test accuracy, %", "no fine-tuning", "genetic search is ahead by")
    tuned = bool(having(seeds, "tuned", GENETIC))
    if tuned:
        header += ("after fine-tuning", "genetic search is ahead by")
    names = dict.fromkeys(name for seed in seeds for name in seed["mask"])
    rows = [
        (name, *cells(seeds, "mask", name), *(cells(seeds, "tuned", name) if tuned else ()))
        for name in names
    ]
    rows.sort(key=lambda row: (row[0] == GENETIC, float(row[1].split(" ")[0])))
    return markdown_table(header, rows)


def cells(seeds: Seeds, what: str, name: str) -> tuple[str, str]:
    """Return the accuracy of a contender, and how far the genetic search is ahead of it."""
    digits = 2 if what == "tuned" else 1
    measured = having(having(seeds, what, GENETIC), what, name)
    if not measured:
        return "", ""
    value = [100 * seed[what][name]["test"] for seed in measured]
    whole = [100 * seed[what][GENETIC]["test"] for seed in measured]
    ahead = [w - v for w, v in zip(whole, value, strict=True)]
    difference = "" if name == GENETIC else interval(ahead, signed=True, digits=digits)
    few = f" ({len(value)} of {len(seeds)} seeds)" if len(value) < len(seeds) else ""
    return interval(value, digits=digits) + few, difference


def own_seeds(seeds: Seeds) -> str:
    """Return what the search adds to the best mask that it started from, on its own images."""
    found = [seed["mask"][GENETIC] for seed in seeds]
    gain = [100 * (one["search_fitness"] - max(one["seeds"].values())) for one in found]
    return (
        "Over the best of its own seeds (thresholds and uniform cut), on the validation images "
        f"that it judges by, the search gains {interval(gain)} points."
    )


def ablations(results: dict[str, Seeds]) -> str:
    """Return the table of what each part of the search is worth, two columns for each setting."""
    names = dict.fromkeys(
        n for s in results.values() for seed in s for n in seed.get("ablation", {})
    )
    done = {s: seeds for s, seeds in results.items() if any("ablation" in seed for seed in seeds)}
    if not done:
        return ""
    header = ("test accuracy, %", *(c for name in done for c in (name, "difference")))
    rows = [(GENETIC, *(cell for s in done.values() for cell in without(s, "")))]
    rows += [(n, *(cell for s in done.values() for cell in without(s, n))) for n in names]
    return markdown_table(header, rows)


def without(seeds: Seeds, name: str) -> tuple[str, str]:
    """Return accuracy without a part, and difference to the whole search; "" is the whole."""
    searched = having(seeds, "mask", GENETIC)
    measured = having(searched, "ablation", name) if name else searched
    if not measured:
        return "", ""
    whole = [100 * seed["mask"][GENETIC]["test"] for seed in measured]
    if not name:
        return interval(whole), ""
    value = [100 * seed["ablation"][name]["test"] for seed in measured]
    lost = [v - w for v, w in zip(value, whole, strict=True)]
    few = f" ({len(value)} of {len(searched)} seeds)" if len(value) < len(searched) else ""
    return interval(value) + few, interval(lost, signed=True)


def having(seeds: Seeds, what: str, name: str) -> list[dict[str, Any]]:
    """Return the seeds for which a contender has been measured."""
    return [seed for seed in seeds if name in seed.get(what, {})]
