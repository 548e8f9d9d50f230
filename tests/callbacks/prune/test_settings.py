"""Whatever is given for whichever argument: it is taken, or refused at once and by name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deap import base

from lightning_slimga import GeneticPruneCallback
from tests.fits.small_fit import prune

NAN = float("nan")
ARGUMENTS = list(inspect.signature(GeneticPruneCallback).parameters)
MAPPING = base.Toolbox()
MAPPING.register("map", lambda function, masks: [function(mask) for mask in masks])
WRONG: dict[str, list[Any]] = {
    "monitor": [None, "", 3, True, ["val_loss"]],
    "mode": [None, "maximum", 1, True, ["min", "max"], np.array(["min", "max"])],
    "budget": [None, 0.5, "macs", {}, {"macs": "0.5"}, {"macs": True}, {"macs": None},
               {"macs": NAN}, {"macs": float("inf")}, {"macs": -1}, {"macs": 1.5}, {3: 0.5},
               {"latency_ms": NAN}, {"latency_ms": True}, [{"macs": 0.5}, {"macs": 0.4}]],
    "prune_epoch": [None, 0, -1, 1.5, True, "1", [1], NAN],
    "prune_epochs": [[], [0], [1.5], ["1"], [True], 3, "12", {"macs": 1}, [2, 1], [[1]]],
    "population_size": [None, 1, 2.0, True, "24", NAN],
    "generations": [None, 0, 2.5, True, "9", [9]],
    "max_evaluations": [0, -1, 2.5, True, "100", NAN, [1]],
    "max_time": [0, -1.0, True, "1h", "00:01:00", NAN, [60]],
    "patience": [0, 1.5, True, "3", NAN],
    "fitness_batches": [0, -1, 0.0, 1.5, True, "half", NAN, [4]],
    "recalibration_batches": [None, -1, 0.5, True, "4"],
    "racing": [None, "yes", 1, 0, "False", []],
    "min_channels": [None, 0, 1.5, True, "1", NAN],
    "round_to": [None, 0, 8.0, True, "8"],
    "ignore": [None, 5, True, b"head", ["head", 3], [None], {"head": 1}, 0.5],
    "only_scaled": [None, "x", 1, []],
    "allow_approximate": [None, "no", 0, {}],
    "pick": ["kne", "", 1.0, 0.0, -0.5, True, NAN, [0], {}, {"flops": 1}, {"macs": "1"}],
    "max_drop": [-0.1, True, "1%", NAN, [0.1]],
    "front": [5, True, "", b"front.json", ["front.json"]],
    "evaluation_factor": [None, "yes", 1],
    "reset_monitors": [None, "yes", 0],
    "finetune_lr": [None, "warm", True, 0.1, ["keep"]],
    "seed": [None, "a", -1, 1.5, True, NAN, 2**64],
    "twins": [None, True, "ema", 3, {"net": "ema"}, ["net"], [("net",)], [("net", 3)],
              [("net", "")], [("a", "b", "c")]],
    "prune_untrained": [None, "yes", 0],
    "report": [None, "no", 1],
    "example_calls": [5, "x", [], (), {"x": 1}, np.zeros(3), True],
    "samples_per_batch": [0, -1, 2.5, True, "8", NAN],
    "toolbox": [5, "mutate", {"mutate": max}, MAPPING, base.Toolbox],
}  # fmt: skip


def given(name: str, value: Any) -> dict[str, Any]:
    """A set of arguments that lacks nothing else."""
    around: dict[str, dict[str, Any]] = {
        "prune_epochs": {"prune_epoch": None, "budget": [{"macs": 0.5}]},
        "front": {"pick": "knee"},
    }
    return {**around.get(name, {}), name: value}


def test_no_argument_is_left_out() -> None:
    assert sorted(WRONG) == sorted(ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        prune(**given(name, value))
    said = str(error.value)
    assert re.match(rf"Expected (either )?argument `{name}\b", said), said
    assert "but got " in said


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_object_of_any_kind_is_refused_by_name(name: str) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "an odd thing " * 100

    with pytest.raises((TypeError, ValueError), match=f"`{name}` to be .*but got") as error:
        prune(**given(name, Odd()))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("population_size", np.int64(5), 5),
        ("generations", np.uint8(3), 3),
        ("max_evaluations", np.int32(7), 7),
        ("max_evaluations", None, None),
        ("max_time", np.float32(0.5), 0.5),
        ("max_time", 60, 60),
        ("patience", np.int64(2), 2),
        ("fitness_batches", np.int64(3), 3),
        ("fitness_batches", np.float32(0.5), 0.5),
        ("fitness_batches", 1.0, 1.0),
        ("recalibration_batches", 0, 0),
        ("racing", np.bool_(False), False),
        ("report", np.bool_(True), True),
        ("min_channels", np.int64(2), 2),
        ("round_to", np.int16(4), 4),
        ("ignore", "body.*", ("body.*",)),
        ("ignore", ["body.*", "head"], ("body.*", "head")),
        ("ignore", (name for name in ["head"]), ("head",)),
        ("pick", np.int64(-1), -1),
        ("pick", np.float64(0.5), 0.5),
        ("pick", {"macs": np.float32(0.5)}, {"macs": 0.5}),
        ("max_drop", np.float32(0.5), 0.5),
        ("max_drop", 0, 0),
        ("front", Path("a") / "front.json", str(Path("a") / "front.json")),
        ("budget", {"macs": np.int64(5000)}, {"macs": 5000}),
        ("budget", {"params": np.float32(0.5)}, {"params": 0.5}),
        ("seed", np.int64(3), 3),
        ("seed", 2**64 - 1, 2**64 - 1),
    ],
)
def test_what_makes_sense_becomes_plain_data(name: str, value: Any, plain: Any) -> None:
    taken = getattr(prune(**given(name, value)).settings, name)
    assert taken == plain
    assert type(taken) is type(plain)
    if isinstance(plain, dict):
        assert [type(limit) for limit in taken.values()] == [type(x) for x in plain.values()]


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({"prune_epoch": np.int64(2)}, (2,)),
        ({"prune_epoch": None, "prune_epochs": [np.int64(2)], "budget": [{"macs": 0.5}]}, (2,)),
        ({"prune_epoch": None, "prune_epochs": range(3, 4), "budget": [{"macs": 0.5}]}, (3,)),
    ],
)
def test_epochs_become_plain_data(arguments: dict[str, Any], epochs: tuple[int, ...]) -> None:
    callback = prune(**arguments)
    assert callback.prune_epochs == epochs
    assert {type(epoch) for epoch in (callback.prune_epoch, *callback.prune_epochs)} == {int}
