"""The tables of README.md, made from the numbers of the Fashion-MNIST experiment."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_slimga.text import count, markdown_table

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- fashion-mnist:start -->", "<!-- fashion-mnist:end -->"


def update_readme(record: dict[str, Any]) -> str:
    """Put the tables between the markers of README.md and return them."""
    tables = render(record)
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    README.write_text(f"{before}{START}\n{tables}\n{END}{after}", encoding="utf-8")
    return tables


def render(record: dict[str, Any]) -> str:
    """Return both tables: after the whole fit, and before fine-tuning."""
    setting, runs = record["setting"], list(record["seeds"].values())
    seeds, epochs = len(runs), setting["epochs"]
    return "\n\n".join(
        [
            f"After {epochs} epochs in all ({seeds} seeds, mean ± standard deviation):",
            fine_tuned_table(setting["budgets"], runs),
            "Right after surgery, before any fine-tuning, test accuracy of the masks that each "
            f"method chose ({setting['max_evaluations']} evaluations for both searches):",
            search_table(setting["budgets"], runs),
            time_line(setting["budgets"], runs),
        ]
    )


def fine_tuned_table(budgets: Sequence[float], runs: Sequence[dict[str, Any]]) -> str:
    """Return one row for the dense network and one for each budget."""
    header = ("network", "test accuracy", "to dense, points", "MACs", "parameters", "latency")
    rows = [("dense", *columns(runs, lambda run: run["dense"]))]
    for budget in budgets:
        rows.append(
            (f"{budget:.0%} of MACs", *columns(runs, lambda run, b=budget: run["pruned"][str(b)]))
        )
    return markdown_table(header, rows)


def columns(
    runs: Sequence[dict[str, Any]], pick: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[str, ...]:
    """Return the cells of one network over all seeds."""
    picked = [pick(run) for run in runs]
    points = [100 * (pick(run)["test"] - run["dense"]["test"]) for run in runs]
    mean = {key: statistics.mean(p[key] for p in picked) for key in ("macs", "params")}
    latency = statistics.median(p["latency_ms"] for p in picked)
    return (
        mean_and_deviation([100 * p["test"] for p in picked], "%"),
        ", ".join(f"{point:+.2f}" for point in points) if any(points) else "",
        count(round(mean["macs"])),
        count(round(mean["params"])),
        f"{latency:.2f} ms",
    )


def search_table(budgets: Sequence[float], runs: Sequence[dict[str, Any]]) -> str:
    """Return one row for each budget, one column for each way to choose a mask."""
    methods = list(runs[0]["pruned"][str(budgets[0])]["before"])
    header = ("MACs kept", "sparse, not pruned", *methods)
    rows = []
    for budget in budgets:
        found = [run["pruned"][str(budget)]["before"] for run in runs]
        whole = mean_and_deviation([100 * run["pruned"]["sparse"]["test"] for run in runs], "%")
        cells = [mean_and_deviation([100 * f[method] for f in found], "%") for method in methods]
        rows.append((f"{budget:.0%}", whole, *cells))
    return markdown_table(header, rows)


def time_line(budgets: Sequence[float], runs: Sequence[dict[str, Any]]) -> str:
    """Return what part of the search was not spent in forward passes, where that was measured."""
    shares = []
    for budget in budgets:
        for run in runs:
            seconds = run["pruned"][str(budget)]["search_seconds"]
            if {"search", "forward"} <= seconds.keys():
                shares.append(1 - seconds["forward"] / seconds["search"])
    if not shares:
        return ""
    return f"Search overhead, everything except forward passes: {statistics.mean(shares):.1%}."


def mean_and_deviation(values: Sequence[float], unit: str) -> str:
    """Return ``mean ± standard deviation``; the mean alone for a single value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f} {unit}"
    return f"{mean:.2f} ± {statistics.stdev(values):.2f} {unit}"
