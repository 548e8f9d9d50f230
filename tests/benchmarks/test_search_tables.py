from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import search_tables, strength_tables
from benchmarks.pages import interval, put


def seed(offset: float) -> dict:
    def found(test: float) -> dict:
        return {"test": test + offset, "search_fitness": 0.9, "seeds": {"uniform": 0.8, "γ": 0.85}}

    return {
        "network": {"full size": {"test": 0.92, "near_zero": 0.0}},
        "mask": {"genetic search": found(0.8), "uniform": {"test": 0.7}},
        "ablation": {"without seeds": found(0.79)},
    }


def test_interval_is_that_of_student() -> None:
    # 4.303 is the 0.975 quantile of Student's t with 2 degrees of freedom, from printed tables.
    assert interval([1.0, 2.0, 3.0], digits=3) == f"2.000 ± {4.303 / 3**0.5:.3f}"
    assert interval([1.5], signed=True) == "+1.5"


def test_differences_are_taken_seed_by_seed() -> None:
    seeds = [seed(0.0), seed(0.01)]
    table = search_tables.contenders(seeds)
    assert "| uniform | 70.0 ± 0.0 | +10.5 ± 6.4 |" in table
    assert "| genetic search | 80.5 ± 6.4 |" in table
    assert "gains 5.0 ± 0.0 points" in search_tables.own_seeds(seeds)
    assert "-1.0 ± 0.0" in search_tables.ablations({"dense": seeds})


def test_a_row_says_how_many_seeds_it_has() -> None:
    unfinished = seed(0.3)
    del unfinished["mask"]["uniform"]
    table = search_tables.contenders([seed(0.0), unfinished])
    assert "| uniform | 70.0 (1 of 2 seeds) | +10.0 |" in table


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.2, 0.46, 0.54), 0.85),  # two are close: the better
        ((0.2, 0.4, 0.6), 0.825),  # none is close: half way between the neighbours
        ((0.1, 0.2, 0.3), 0.80),  # all on one side: the nearest
    ],
)
def test_best_fixed_strength(shares: tuple[float, ...], expected: float) -> None:
    tests = (0.9, 0.85, 0.8)
    fits = {
        str(i): {"share": s, "test": t} for i, (s, t) in enumerate(zip(shares, tests, strict=True))
    }
    fits["auto"] = {"share": 0.5, "test": 0.99}
    assert strength_tables.best_fixed(fits, 0.5) == pytest.approx(expected)


def test_only_the_text_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:start -->\nold\n<!-- a:end -->\nafter\n")
    put(page, "a", "new")
    assert page.read_text() == "before\n<!-- a:start -->\nnew\n<!-- a:end -->\nafter\n"
