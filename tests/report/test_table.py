from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_slimga.report import format_table, table, write_report
from tests.report.example import example_report


def test_plain_table_is_aligned_and_adds_up() -> None:
    lines = format_table(example_report(), terminal=False).splitlines()
    assert lines[0].startswith("budget macs 0.35 · 17.5% of MACs · 5.8% of parameters kept")
    assert lines[0].endswith("val_acc 0.8262 after surgery")
    assert len({len(line) for line in lines[1:]}) == 1
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[3] == [
        "stem", "24 → 12", "50.0%", "1.00 M → 500 k", "50.0%", "240 → 120", "50.0%",
    ]  # fmt: skip
    assert cells[-1][:4] == ["whole network", "168 → 48", "28.6%", "5.72 M → 1.00 M"]


def test_terminal_table_holds_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    report = example_report()
    drawn = format_table(report, terminal=True)
    for row in table.layer_cells(report):
        for cell in row:
            assert cell in drawn


def test_terminal_table_without_rich_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    report = example_report()
    assert format_table(report, terminal=True) == format_table(report, terminal=False)


def test_output_that_is_no_terminal_gets_plain_text() -> None:
    report = example_report()
    assert format_table(report) == format_table(report, terminal=False)


@pytest.mark.parametrize(
    ("budget", "said", "asked"),
    [
        ({"params": 1500.0}, "params 1,500", "at most 1,500 parameters,"),
        ({"macs": 12e6}, "macs 12,000,000", "at most 12,000,000 MACs,"),
        ({"latency_ms": 2.5}, "latency_ms 2.5", "at most 2.5 ms latency,"),
        ({"macs": 1.0}, "macs 1.0", "at most 100.0% of the MACs,"),
    ],
)
def test_a_limit_is_shown_as_people_write_it(
    budget: dict[str, float], said: str, asked: str, tmp_path: Path
) -> None:
    report = example_report(budget=budget)
    assert format_table(report, terminal=False).startswith(f"budget {said} · ")
    write_report(tmp_path, report)
    assert f"Asked for: {asked} with the" in (tmp_path / "report.md").read_text(encoding="utf-8")
