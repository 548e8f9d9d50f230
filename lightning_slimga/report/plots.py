"""The pictures of a run, drawn without touching the user's matplotlib backend."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_slimga.report.data import FrontRows, LayerRow, PruningReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#b8c0cc", "#1f5fa8"
"""The same two colours mean before and after in every picture."""
SEED_COLORS = ("#c2571a", "#3c8d5a", "#8b5fa8", "#a8861f", "#7a6a5f", "#c04f7c")
SEED_DASHES = ("--", ":", "-.")
MAX_HEIGHT = 200.0
"""Inches; the drawing library refuses pictures of more than 65536 points."""
MAX_SEED_DISTANCE = 2.0
"""How far beyond the generations a seed is still drawn, in heights of their own range."""


def write_plots(folder: Path, report: PruningReport) -> list[str]:
    """Draw whatever the report holds data for.

    Args:
        folder: Existing folder for the PNG files.
        report: The run.

    Returns:
        The names of the files that were written, in the order in which they should be shown.
    """
    figures = {
        "channels.png": channels_figure(report.layers) if report.layers else None,
        "fitness.png": fitness_figure(report) if report.history else None,
        "front.png": front_figure(report.monitor, report.front) if report.front else None,
        "gamma.png": gamma_figure(report) if any(report.gamma_before.values()) else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=120)
    return list(drawn)


def gamma_figure(report: PruningReport) -> Figure:
    """Return the histogram of |γ| over all layers, before surgery and of the kept channels."""
    from matplotlib.ticker import StrMethodFormatter

    figure, axes = _canvas()
    before, after = (
        np.abs(np.fromiter(itertools.chain.from_iterable(values.values()), dtype=float))
        for values in (report.gamma_before, report.gamma_after)
    )
    edges = np.linspace(0.0, max(before.max(), after.max(initial=0.0), 1e-12), 51).tolist()
    axes.hist(before, bins=edges, color=BEFORE, label=f"before surgery ({before.size})")
    axes.hist(after, bins=edges, color=AFTER, label=f"kept ({after.size})", rwidth=0.6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(bottom=0.7)
    axes.set(xlabel="scaling factor |γ|", ylabel="channels", title="Scaling factors")
    axes.legend(frameon=False)
    return figure


def fitness_figure(report: PruningReport) -> Figure:
    """Return best and mean fitness by generation, the seeds and controls as lines across.

    A seed so far from the generations that it would flatten them is named but not drawn.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas()
    generations = [entry["generation"] for entry in report.history]
    best = np.array([entry["best"] for entry in report.history], dtype=float)
    mean = np.array([entry["mean"] for entry in report.history], dtype=float)
    spread = np.array([entry.get("std", np.nan) for entry in report.history], dtype=float)
    axes.fill_between(generations, mean - spread, mean + spread, color=AFTER, alpha=0.12, lw=0)
    axes.plot(generations, mean, color=AFTER, alpha=0.6, lw=1.2, label="mean ± deviation")
    axes.plot(generations, best, color=AFTER, lw=2.2, marker="o", ms=4, label="best")
    bottom, top = axes.get_ylim()
    reach = MAX_SEED_DISTANCE * (top - bottom)
    for (name, value), color, dash in zip(
        report.best_seeds().items(), itertools.cycle(SEED_COLORS), itertools.cycle(SEED_DASHES)
    ):
        label = f"{name}  {value:.4f}"
        if bottom - reach < value < top + reach:
            axes.axhline(value, color=color, ls=dash, lw=1.2, label=label)
        else:
            axes.plot([], [], ls="", label=f"{label} (off scale)")
    axes.set(xlabel="generation", ylabel=report.monitor, title="Search, before fine-tuning")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize="small", loc="outside right center")
    return figure


def front_figure(monitor: str, front: FrontRows) -> Figure:
    """Return the metric over the cost, as share of the network before surgery."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = _canvas()
    shares = [cost / front.full[0] for cost, _ in front.points]
    metrics = [metric for _, metric in front.points]
    axes.step(shares, metrics, where="post", color=AFTER, lw=1.2, alpha=0.6)
    axes.plot(shares, metrics, color=AFTER, ls="", marker="o", ms=4, label="front")
    point = shares[front.chosen], metrics[front.chosen]
    label = f"chosen: point {front.chosen}"
    axes.plot(*point, color=AFTER, ls="", marker="o", ms=11, fillstyle="none", label=label)
    axes.plot(1.0, front.full[1], color=BEFORE, ls="", marker="s", ms=7, label="before surgery")
    if front.floor is not None:
        axes.axhline(front.floor, color=SEED_COLORS[0], ls="--", lw=1.2, label="floor")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(xlabel=f"{front.budget} kept", ylabel=monitor, title="Front, before fine-tuning")
    axes.legend(frameon=False, loc="lower right" if metrics[-1] >= metrics[0] else "upper right")
    return figure


def channels_figure(layers: list[LayerRow]) -> Figure:
    """Return horizontal bars of the channels of each layer, before and after."""
    figure, axes = _canvas(height=min(1.6 + 0.24 * len(layers), MAX_HEIGHT))
    positions = np.arange(len(layers))
    before = [row.channels_before for row in layers]
    after = [row.channels_after for row in layers]
    axes.barh(positions, before, color=BEFORE, height=0.75, label="before surgery")
    axes.barh(positions, after, color=AFTER, height=0.45, label="kept")
    for position, total, kept in zip(positions, before, after, strict=True):
        axes.annotate(
            f"{kept}/{total}",
            (total, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color="#444444",
        )
    axes.set_yticks(positions, [row.name for row in layers], fontsize="x-small")
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(before))
    axes.set(xlabel="channels", title="Channels kept")
    figure.legend(frameon=False, fontsize="small", ncols=2, loc="outside lower center")
    return figure


def _canvas(height: float = 4.0) -> tuple[Figure, Axes]:
    """Return an empty figure of 8 x `height` inches, made without pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
