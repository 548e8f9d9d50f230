from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.tasks import Key, Ledger, run


def double(key: Key, known: dict[str, Any]) -> dict[str, Any]:
    source = known["first"]["a"]["value"] if key[1] == "second" else 1.0
    return {"value": 2.0 * source}


def test_later_stages_see_earlier_results_and_a_second_run_does_only_what_is_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results" / "numbers.json"
    stages = [[("x", "first", "a")], [("x", "second", "a")]]
    ledger = Ledger(path, {"setting": 1})
    ledger.write(("x", "first", "a"), {"value": 10.0})  # as an earlier run has left it
    run(stages, double, ledger, workers=1)
    written = json.loads(path.read_text())["results"]
    assert written == {"x": {"first": {"a": {"value": 10.0}}, "second": {"a": {"value": 20.0}}}}


def test_results_of_other_settings_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    Ledger(path, {"setting": (1, 2)}).write(("a", "b"), {"value": 1.0})
    assert Ledger(path, {"setting": (1, 2)}).at("a") == {"b": {"value": 1.0}}
    assert Ledger(path, {"setting": (1, 3)}).at("a") == {}
    assert Ledger(path, {"setting": (1, 2)}, fresh=True).at("a") == {}
