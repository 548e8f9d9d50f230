from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tasks import Key, Ledger, run


def double(key: Key, known: dict[str, Any]) -> dict[str, Any]:
    source = known["first"]["a"]["value"] if key[1] == "second" else 1.0
    return {"value": 2.0 * source}


def needs(key: Key) -> list[Key]:
    return [(key[0], "first", "a")] if key[1] == "second" else []


def test_tasks_see_what_they_need_and_a_second_run_does_only_what_is_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results" / "numbers.json"
    tasks = [("x", "second", "a"), ("x", "first", "a"), ("y", "first", "a")]
    ledger = Ledger(path, {"setting": 1})
    ledger.write(("y", "first", "a"), {"value": 10.0})  # as an earlier run has left it
    run(tasks, needs, double, ledger, workers=1)
    assert json.loads(path.read_text())["results"] == {
        "x": {"first": {"a": {"value": 2.0}}, "second": {"a": {"value": 4.0}}},
        "y": {"first": {"a": {"value": 10.0}}},
    }


def test_a_need_that_nobody_meets_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "numbers.json", {})
    with pytest.raises(ValueError, match="Expected every need to be among `tasks`"):
        run([("x", "second", "a")], needs, double, ledger, workers=1)


def test_results_of_other_settings_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    Ledger(path, {"setting": (1, 2)}).write(("a", "b"), {"value": 1.0})
    assert Ledger(path, {"setting": (1, 2)}).at("a") == {"b": {"value": 1.0}}
    assert Ledger(path, {"setting": (1, 3)}).at("a") == {}
    assert Ledger(path, {"setting": (1, 2)}, fresh=True).at("a") == {}
