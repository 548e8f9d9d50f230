"""What people see of a pruning run: the live line, the table, and the report folder.

- ``data``: what a report says, plain data. ``table``: it by layer, on a terminal.
- ``writer``: the folder, with the page and the JSON. ``plots``: its pictures.
- ``progress``: the live line of a search.
"""

from __future__ import annotations

from lightning_slimga.report.data import FrontRows, LayerRow, PruningReport
from lightning_slimga.report.progress import SearchProgress
from lightning_slimga.report.table import format_table
from lightning_slimga.report.writer import write_report

__all__ = [
    "FrontRows",
    "LayerRow",
    "PruningReport",
    "SearchProgress",
    "format_table",
    "write_report",
]
