"""The before/after table: in colour on a terminal, as aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from lightning_slimga.report.data import PruningReport
from lightning_slimga.text import count, fraction, plain_table

LAYER_HEADER = ("layer", "channels", "kept", "MACs", "kept", "parameters", "kept")


def format_table(report: PruningReport, *, terminal: bool | None = None) -> str:
    """Return the before/after table of a run, layer by layer and in all.

    Args:
        report: The run.
        terminal: True draws with `rich` (where installed), False gives plain aligned text;
            None looks at whether standard output is a terminal.

    Returns:
        Several lines without a trailing line break.

    >>> from lightning_slimga.report import LayerRow
    >>> report = PruningReport(
    ...     monitor="val_acc",
    ...     mode="max",
    ...     budget={"macs": 0.5},
    ...     layers=[LayerRow("stem", 24, 12, 1_000_000, 500_000, 240, 120)],
    ...     macs=(1_000_000, 500_000),
    ...     params=(500, 260),
    ...     history=[],
    ...     seeds={},
    ...     search_fitness=0.8262,
    ... )
    >>> print(format_table(report, terminal=False))
    budget macs 0.5 · 50.0% of MACs · 52.0% of parameters kept · val_acc 0.8262 after surgery
    layer          channels   kept            MACs   kept  parameters   kept
    -------------  --------  -----  --------------  -----  ----------  -----
    stem            24 → 12  50.0%  1.00 M → 500 k  50.0%   240 → 120  50.0%
    -------------  --------  -----  --------------  -----  ----------  -----
    whole network   24 → 12  50.0%  1.00 M → 500 k  50.0%   500 → 260  52.0%
    """
    header, rows = LAYER_HEADER, layer_cells(report)
    terminal = sys.stdout.isatty() if terminal is None else terminal
    if terminal and find_spec("rich") is not None:
        return f"{report}\n{_rich_table(header, rows)}"
    return f"{report}\n{plain_table(header, rows, total=True)}"


def layer_cells(report: PruningReport) -> list[tuple[str, ...]]:
    """Return the cells below `LAYER_HEADER`: one row per layer, then one for the network."""
    rows = [
        (
            row.name,
            f"{row.channels_before} → {row.channels_after}",
            fraction(row.channels_before, row.channels_after),
            f"{count(row.macs_before)} → {count(row.macs_after)}",
            fraction(row.macs_before, row.macs_after),
            f"{count(row.params_before)} → {count(row.params_after)}",
            fraction(row.params_before, row.params_after),
        )
        for row in report.layers
    ]
    before = sum(row.channels_before for row in report.layers)
    after = sum(row.channels_after for row in report.layers)
    total = (
        "whole network",
        f"{before} → {after}",
        fraction(before, after),
        f"{count(report.macs[0])} → {count(report.macs[1])}",
        fraction(*report.macs),
        f"{count(report.params[0])} → {count(report.params[1])}",
        fraction(*report.params),
    )
    return [*rows, total]


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0, show_edge=False)
    for index, name in enumerate(header):
        justify: Literal["left", "right"] = "right" if index else "left"
        table.add_column(name, justify=justify, no_wrap=index > 0, overflow="fold")
    for row in rows[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*rows[-1], style="bold")
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
