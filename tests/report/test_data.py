from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lightning_slimga.report.data import SCHEMA_VERSION, jsonable
from tests.report.example import example_report


def test_plain_report_is_strict_json_and_says_its_schema() -> None:
    plain = example_report(search_fitness=math.nan, seeds={"uniform": math.inf}).to_plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["schema_version"] == SCHEMA_VERSION
    assert plain["search_fitness"] is None
    assert plain["seeds"] == {"uniform": None}
    assert plain["layers"][0]["channels_after"] == 12


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64("nan"), None),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        ((1, [2.5, -math.inf]), [1, [2.5, None]]),
        ({1: {"a": None}}, {"1": {"a": None}}),
        (slice(0, 2), "slice(0, 2, None)"),
    ],
)
def test_jsonable(value: object, expected: object) -> None:
    got = jsonable(value)
    assert got == expected
    assert type(got) is type(expected)


def test_a_report_is_printed_in_a_line() -> None:
    report = example_report(dense=(11_440_704, 347_684))  # of a later round: shares of the first
    line = (
        "budget macs 0.35 · 8.7% of MACs · 2.9% of parameters kept · val_acc 0.8262 after surgery"
    )
    assert str(report) == line
    assert repr(report) == f"<PruningReport: {line}>"


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="`mode` to be 'max' or 'min', but got 'highest'"):
        example_report(mode="highest")


@pytest.mark.parametrize(("mode", "best"), [("max", 0.7), ("min", 0.2)])
def test_numbered_seeds_are_shown_by_their_best(mode: str, best: float) -> None:
    seeds = {"gamma_threshold": 0.5, "random_0": math.nan, "random_1": 0.7, "random_2": 0.2}
    assert example_report(mode=mode, seeds=seeds).best_seeds() == {
        "gamma threshold": 0.5,
        "random, best of 3": best,
    }
