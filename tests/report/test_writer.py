from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lightning_slimga.report import FrontRows, write_report, writer
from tests.report.example import example_report

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_folder_holds_page_data_and_pictures(tmp_path: Path) -> None:
    folder = write_report(tmp_path / "runs" / "slimga", example_report())
    assert sorted(path.name for path in folder.iterdir()) == [
        "channels.png", "fitness.png", "gamma.png", "report.json", "report.md",
    ]  # fmt: skip
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(PNG_SIGNATURE)
        assert f"]({picture.name})" in (folder / "report.md").read_text(encoding="utf-8")


def test_json_is_strict_and_complete(tmp_path: Path) -> None:
    report = example_report(search_fitness=math.nan)
    text = (write_report(tmp_path, report) / "report.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"not strict JSON: {constant}")

    data = json.loads(text, parse_constant=refuse)
    versions = data.pop("versions")
    assert data == json.loads(json.dumps(report.to_plain()))
    assert {"python", "torch", "lightning", "deap"} <= versions.keys()


def test_page_reads_on_its_own() -> None:
    page = writer.format_markdown(example_report(), versions={"torch": "2.14.1"})
    assert "Asked for: at most 35.0% of the MACs, with the highest `val_acc`." in page
    assert "| MACs | 5.72 M | 1.00 M | 17.5% |" in page
    assert "| latency | 1.250 ms | 0.500 ms | 40.0% |" in page
    assert "| gamma threshold | 0.6710 |" in page
    assert "| 9 | 216 | 0.8260 | 0.7940 | 12.5 |" in page
    assert "- model output: `fc.weight`, `fc.bias`" in page
    assert "| population_size | 24 |" in page
    assert "| torch | 2.14.1 |" in page


def test_page_shows_what_racing_left_out() -> None:
    report = example_report()
    assert "validation batches" not in writer.format_markdown(report, versions={})
    report.history = [{**entry, "work": 0.625} for entry in report.history]
    page = writer.format_markdown(report, versions={})
    assert "| best | mean | seconds | validation batches |" in page
    assert "| 9 | 216 | 0.8260 | 0.7940 | 12.5 | 62% |" in page


def test_page_shows_the_front(tmp_path: Path) -> None:
    front = FrontRows("macs", [(1e6, 0.5), (2.5e6, 0.8)], (5e6, 0.9), 1, floor=0.7)
    report = example_report(front=front)
    page = writer.format_markdown(report, versions={})
    assert "| point | MACs | kept | val_acc |" in page
    assert "| 0 | 1.00 M | 20.0% | 0.5000 |" in page
    assert "| **1** | **2.50 M** | **50.0%** | **0.8000** |" in page
    assert "At worst 0.7000 was allowed." in page
    folder = write_report(tmp_path, report)
    assert (folder / "front.png").read_bytes().startswith(PNG_SIGNATURE)
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert data["front"]["points"] == [[1e6, 0.5], [2.5e6, 0.8]]


def test_page_of_a_later_round_compares_with_the_dense_network() -> None:
    report = example_report(dense=(10_000_000, 200_000), macs=(2_000_000, 1_000_000))
    page = writer.format_markdown(report, versions={})
    assert "| whole network | before | after | kept | of the dense network |" in page
    assert "| MACs | 2.00 M | 1.00 M | 50.0% | 10.0% |" in page
    assert "| parameters | 174 k | 10.0 k | 5.8% | 5.0% |" in page


def test_page_leaves_out_what_is_not_there() -> None:
    report = example_report(
        history=[], seeds={}, frozen=[], settings={}, seconds={}, latency_ms=None
    )  # fmt: skip
    page = writer.format_markdown(report, versions={})
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == ["# Pruning report", "## What came out", "## Layers"]
    assert "latency" not in page


def test_absolute_budgets_and_lower_is_better() -> None:
    report = example_report(budget={"macs": 2_000_000, "latency_ms": 0.5}, mode="min")
    page = writer.format_markdown(report, versions={})
    assert "at most 2,000,000 MACs and at most 0.5 ms latency, with the lowest `val_acc`" in page


def test_without_matplotlib_there_are_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "find_spec", lambda name: None)
    folder = write_report(tmp_path, example_report())
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.md"]
    assert "Pictures" not in (folder / "report.md").read_text(encoding="utf-8")


def test_report_is_written_again_over_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path, example_report(search_fitness=0.75))
    write_report(tmp_path, example_report(search_fitness=0.9114))
    assert "0.9114" in (tmp_path / "report.md").read_text(encoding="utf-8")
