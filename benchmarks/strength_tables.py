"""The tables of docs/search.md about λ that finds itself and about coupled γ."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.pages import DOCS, interval, put
from lightning_slimga.text import markdown_table

PAGE = DOCS / "search.md"
CLOSE = 0.05
Fits = dict[str, dict[str, float]]
"""What the fits of one network and seed have given, by λ or "auto"."""


def update(record: dict[str, Any]) -> str:
    """Put the tables into the page and return them."""
    text = "\n\n".join(
        [steered(record), every_strength(record["results"]), coupled(record["results"])]
    )
    put(PAGE, "strength-auto", text)
    return text


def steered(record: dict[str, Any]) -> str:
    """Return the table of "auto" beside the best fixed λ of the same share."""
    header = (
        "network", 'share of γ near zero, "auto"', "furthest from the target", "λ at the end",
        "test accuracy, %", "best fixed λ of that share", '"auto" is ahead by',
    )  # fmt: skip
    rows = []
    for network, seeds in record["results"].items():
        fits = [seed["share"] for seed in seeds.values()]
        auto = [fit["auto"] for fit in fits]
        fixed = [100 * best_fixed(fit, record["target"]) for fit in fits]
        own = [100 * one["test"] for one in auto]
        strengths = [one["strength"] for one in auto]
        rows.append(
            (
                network,
                interval([one["share"] for one in auto], digits=3),
                f"{max(abs(one['share'] - record['target']) for one in auto):.3f}",
                f"{min(strengths):.2g} to {max(strengths):.2g}",
                interval(own),
                interval(fixed),
                interval([a - b for a, b in zip(own, fixed, strict=True)], signed=True),
            )
        )
    return markdown_table(header, rows)


def best_fixed(fits: Fits, target: float) -> float:
    """Return the best accuracy that a fixed λ reaches at the target share.

    Of the λ whose share is within 0.05 of the target, the best; if there is none, what lies on the
    line between those next to the target on either side (or the one next to it, if there are
    none on one side).
    """
    fixed = sorted((fit["share"], fit["test"]) for name, fit in fits.items() if name != "auto")
    close = [test for share, test in fixed if abs(share - target) <= CLOSE]
    if close:
        return max(close)
    below = [point for point in fixed if point[0] < target]
    above = [point for point in fixed if point[0] > target]
    if not below or not above:
        return min(fixed, key=lambda point: abs(point[0] - target))[1]
    (left, low), (right, high) = below[-1], above[0]
    return low + (high - low) * (target - left) / (right - left)


def every_strength(results: dict[str, Any]) -> str:
    """Return what each fixed λ gives: share near zero and test accuracy, means over the seeds."""
    rows = []
    for network, seeds in results.items():
        fits = [seed["share"] for seed in seeds.values()]
        for name in sorted((n for n in fits[0] if n != "auto"), key=float):
            share = statistics.mean(fit[name]["share"] for fit in fits)
            test = statistics.mean(fit[name]["test"] for fit in fits)
            rows.append((network, f"{float(name):g}", f"{share:.2f}", f"{100 * test:.1f}"))
    return markdown_table(("network", "fixed λ", "share near zero", "test accuracy, %"), rows)


def coupled(results: dict[str, Any]) -> str:
    """Return the table of coupled and single γ."""
    header = ("small ResNet, `auto`", "γ near zero, %", "empty channels, %", "test accuracy, %")
    fits = [s["coupled"] for s in results["small ResNet"].values() if len(s.get("coupled", {})) > 1]
    if not fits:
        return ""
    keys = ("share", "empty_channels", "test")
    rows = [
        (kind, *(interval([100 * fit[kind][key] for fit in fits]) for key in keys))
        for kind in fits[0]
    ]
    single, together = sorted(fits[0], reverse=True)
    gains = (
        interval([100 * (fit[together][key] - fit[single][key]) for fit in fits], signed=True)
        for key in keys
    )
    return markdown_table(header, [*rows, ("difference", *gains)])
