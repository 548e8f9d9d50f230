from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import fashion_tables


def record() -> dict[str, Any]:
    def network(test: float, macs: int) -> dict[str, float]:
        return {"val": test, "test": test, "macs": macs, "params": 50_000, "latency_ms": 0.5}

    def seed(offset: float) -> dict[str, Any]:
        pruned = {
            **network(0.918 + offset, 2_860_000),
            "search_seconds": {"search": 100.0, "forward": 95.0},
            "before": {"genetic search": 0.89, "uniform": 0.85},
        }
        return {
            "dense": network(0.92, 5_720_352),
            "pruned": {"0.5": pruned, "sparse": network(0.91, 5_720_352)},
        }

    setting = {"epochs": 10, "budgets": [0.5], "max_evaluations": 216}
    return {"setting": setting, "seeds": {"0": seed(0.0), "1": seed(0.001)}}


def test_tables_hold_means_differences_and_the_overhead() -> None:
    text = fashion_tables.render(record())
    assert "| dense | 92.00 ± 0.00 % |  | 5.72 M |" in text
    assert "| 50% of MACs | 91.85 ± 0.07 % | -0.20, -0.10 | 2.86 M | 50.0 k | 0.50 ms |" in text
    assert "| 50% | 91.00 ± 0.00 % | 89.00 ± 0.00 % | 85.00 ± 0.00 % |" in text
    assert text.endswith("everything except forward passes: 5.0%.")


def test_readme_is_changed_between_the_markers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{fashion_tables.START}\nold\n{fashion_tables.END}\nafter\n")
    monkeypatch.setattr(fashion_tables, "README", readme)
    tables = fashion_tables.update_readme(record())
    marked = f"{fashion_tables.START}\n{tables}\n{fashion_tables.END}"
    assert readme.read_text(encoding="utf-8") == f"before\n{marked}\nafter\n"


def test_the_project_has_a_place_for_the_tables() -> None:
    text = fashion_tables.README.read_text(encoding="utf-8")
    assert text.index(fashion_tables.START) < text.index(fashion_tables.END)
