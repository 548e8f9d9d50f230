"""The report folder: one page to read, one file to parse, three pictures."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_slimga.report.data import PruningReport, jsonable
from lightning_slimga.report.table import LAYER_HEADER, layer_cells
from lightning_slimga.text import amount, count, fraction, frozen_by_reason, markdown_table

PACKAGES = ("lightning-slimga", "torch", "lightning", "torchmetrics", "deap", "numpy")
UNITS = {"macs": "MACs", "params": "parameters", "latency_ms": "ms latency"}
CAPTIONS = {
    "channels.png": "Channels kept in each layer",
    "fitness.png": "Fitness by generation",
    "front.png": "Metric over cost",
    "gamma.png": "Scaling factors before and after",
}


def write_report(folder: str | Path, report: PruningReport) -> Path:
    """Write ``report.md``, ``report.json`` and, where matplotlib is installed, the plots.

    Args:
        folder: Where to write; made with its parents if missing. Files of an earlier report of
            the same run are overwritten.
        report: The run.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = installed_versions()
    plots: list[str] = []
    if find_spec("matplotlib") is not None:
        from lightning_slimga.report.plots import write_plots

        plots = write_plots(folder, report)
    plain = {**report.to_plain(), "versions": versions}
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(f"{text}\n", encoding="utf-8")
    page = format_markdown(report, versions=versions, plots=plots)
    (folder / "report.md").write_text(page, encoding="utf-8")
    return folder


def format_markdown(
    report: PruningReport, *, versions: dict[str, str], plots: Iterable[str] = ()
) -> str:
    """Return the report as one Markdown page that needs nothing beside it but the plots.

    Args:
        report: The run.
        versions: Package versions by name.
        plots: File names of the pictures, relative to the page.
    """
    pictures = "\n\n".join(f"![{CAPTIONS.get(name, name)}]({name})" for name in plots)
    sections = [
        ("", f"# Pruning report\n\n{_asked(report)}"),
        ("What came out", _outcome(report)),
        ("Layers", markdown_table(LAYER_HEADER, layer_cells(report))),
        ("Pictures", pictures),
        ("Search", _search(report)),
        ("Front", _front(report)),
        ("What could not be pruned", _frozen(report)),
        ("Settings", _pairs("setting", report.settings)),
        ("Time", _pairs("part", {k: f"{v:.1f} s" for k, v in report.seconds.items()})),
        ("Versions", _pairs("package", versions)),
    ]
    filled = [(title, body) for title, body in sections if body]
    return "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in filled) + "\n"


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was not installed
            continue
    return found


def _asked(report: PruningReport) -> str:
    limits = " and ".join(
        f"at most {value:.1%} of the {UNITS.get(name, name)}"
        if name != "latency_ms" and 0 < value <= 1
        else f"at most {amount(value)} {UNITS.get(name, name)}"
        for name, value in report.budget.items()
    )
    aim = "highest" if report.mode == "max" else "lowest"
    return f"Asked for: {limits}, with the {aim} `{report.monitor}`."


def _outcome(report: PruningReport) -> str:
    rows: list[tuple[str, ...]] = [
        ("MACs", *map(count, report.macs), fraction(*report.macs)),
        ("parameters", *map(count, report.params), fraction(*report.params)),
    ]
    if report.latency_ms is not None:
        before, after = report.latency_ms
        rows.append(("latency", f"{before:.3f} ms", f"{after:.3f} ms", fraction(before, after)))
    header: tuple[str, ...] = ("whole network", "before", "after", "kept")
    if report.dense is not None:  # a later round
        shares = zip(report.dense, (report.macs[1], report.params[1]), strict=True)
        of_dense = [*(fraction(*share) for share in shares), "–"]
        rows = [(*row, share) for row, share in zip(rows, of_dense, strict=False)]
        header = (*header, "of the dense network")
    lines = [f"- `{report.monitor}` right after surgery: **{report.search_fitness:.4f}**"]
    if report.fitness_in_search is not None:
        part = "on the part of the validation data that the search saw"
        lines.append(f"- the same, {part}: {report.fitness_in_search:.4f}")
    if report.uncut is not None:
        dense, anew = (f"{metric:.4f}" for metric in report.uncut)
        told = f"{dense}, and {anew} with batch norm recalibrated, as candidates are measured"
        lines.append(f"- of the uncut network: {told if anew != dense else dense}")
    table = markdown_table(header, rows)
    return f"{table}\n\n" + "\n".join(lines)


def _search(report: PruningReport) -> str:
    parts = []
    if report.seeds:
        rows = [(name, f"{value:.4f}") for name, value in report.best_seeds().items()]
        found = report.search_fitness  # or on the same data as theirs
        found = found if report.fitness_in_search is None else report.fitness_in_search
        rows.append(("**genetic search**", f"**{found:.4f}**"))
        parts.append(
            "The chosen mask beside masks found without the genetic search, all before "
            "fine-tuning:\n\n" + markdown_table(("mask", report.monitor), rows)
        )
    if report.history:
        parts.append(_generations(report.history))
    return "\n\n".join(parts)


def _generations(history: list[dict[str, Any]]) -> str:
    """Return a row for each generation; with racing also the validation batches that it ran."""
    header: tuple[str, ...] = ("generation", "evaluations", "best", "mean", "seconds")
    rows: list[tuple[str, ...]] = [
        (
            str(entry["generation"]),
            str(entry["evaluations"]),
            f"{entry['best']:.4f}",
            f"{entry['mean']:.4f}",
            f"{entry['seconds']:.1f}",
        )
        for entry in history
    ]
    if all("work" in entry for entry in history):
        header = (*header, "validation batches")
        rows = [(*row, f"{e['work']:.0%}") for row, e in zip(rows, history, strict=True)]
    return markdown_table(header, rows)


def _front(report: PruningReport) -> str:
    """Return what there was to choose from."""
    front = report.front
    if front is None:
        return ""
    rows = []
    for index, (cost, metric) in enumerate(front.points):
        amount = f"{cost:.3f}" if front.budget == "latency_ms" else count(round(cost))
        cells = (str(index), amount, fraction(front.full[0], cost), f"{metric:.4f}")
        rows.append(tuple(f"**{c}**" for c in cells) if index == front.chosen else cells)
    header = ("point", UNITS.get(front.budget, front.budget), "kept", report.monitor)
    floor = "" if front.floor is None else f" At worst {front.floor:.4f} was allowed."
    return (
        f"No network that was tried is better and cheaper than one of these.{floor} Any of them can"
        " be cut out later, without a search: `front.json` holds them.\n\n"
        + markdown_table(header, rows)
    )


def _frozen(report: PruningReport) -> str:
    """Return one list item per reason."""
    return "\n".join(
        f"- {reason}: {', '.join(f'`{name}`' for name in names)}"
        for reason, names in frozen_by_reason(report.frozen)
    )


def _pairs(title: str, values: dict[str, Any]) -> str:
    """Return a two-column table, or nothing for no values."""
    if not values:
        return ""
    return markdown_table(
        (title, "value"), [(str(name), str(jsonable(value))) for name, value in values.items()]
    )
