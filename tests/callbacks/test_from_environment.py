from __future__ import annotations

import json
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.trainer.connectors import callback_connector

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.callbacks.from_environment import VARIABLE, callbacks_from_environment

PRUNE = {"monitor": "val_acc", "mode": "max", "budget": {"macs": 0.4}, "prune_epoch": 3}


def test_nothing_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert callbacks_from_environment() == []
    monkeypatch.setenv(VARIABLE, "")
    assert callbacks_from_environment() == []


def test_a_trainer_gets_what_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"sparsity": {"strength": 0.5}, "prune": PRUNE}))

    class Installed:
        name = "lightning_slimga"

        def load(self) -> Any:
            return callbacks_from_environment

    def entry_points(*_: Any, group: str = "", **__: Any) -> list[Installed]:
        return [Installed()] if group == "lightning.pytorch.callbacks_factory" else []

    module = callback_connector._load_external_callbacks.__globals__
    monkeypatch.setitem(module, "entry_points", entry_points)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    (sparsity,) = (c for c in trainer.callbacks if isinstance(c, SparsityCallback))
    (prune,) = (c for c in trainer.callbacks if isinstance(c, GeneticPruneCallback))
    assert sparsity.strength == 0.5
    assert (prune.monitor, prune.prune_epoch) == ("val_acc", 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("strength=1", "Expecting value"),
        ("[]", "the keys are 'sparsity', 'prune'"),
        ('{"slim": {}}', "the keys are 'sparsity', 'prune'"),
        ('{"sparsity": 3}', "arguments must be an object, not 3"),
        ('{"sparsity": {"strenght": 3}}', "unexpected keyword argument 'strenght'"),
        ('{"prune": {"monitor": "a"}}', "missing 2 required keyword-only arguments"),
        (json.dumps({"prune": {**PRUNE, "round_to": 0}}), "`round_to` to be a whole number"),
    ],
)
def test_mistakes_are_named(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=f"Expected environment variable {VARIABLE}") as error:
        callbacks_from_environment()
    assert message in str(error.value)
