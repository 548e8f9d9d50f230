"""Logged metrics move where Lightning would have moved them, but not twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torchmetrics import MeanMetric

from lightning_slimga.callbacks.internals.results import SettledResults


class Moves:
    """Counts the walks of a result through what it holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning.pytorch.trainer.connectors.logger_connector import result

        self.count = 0
        original = result._ResultMetric.to

        def to(metric: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return original(metric, *args, **kwargs)

        monkeypatch.setattr(result._ResultMetric, "to", to)


def log(results: Any, value: Any) -> Any:
    results.log("validation_step", "name", value, batch_size=2, metric_attribute="acc")
    return results["validation_step.name"]


@pytest.mark.parametrize("kind", [_ResultCollection, SettledResults])
def test_values_are_those_of_lightning(kind: Any) -> None:
    results = kind(training=False)
    for value in (1.0, 2.0, 4.5):
        result = log(results, torch.tensor(value))
    assert float(result.compute()) == 2.5
    metric, results = MeanMetric(), kind(training=False)
    for value in (1.0, 2.0, 6.0):
        metric(value)
        result = log(results, metric)
    assert result.value is metric
    assert float(result.compute()) == 3.0


def test_a_result_that_is_there_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, results, metric = Moves(monkeypatch), SettledResults(training=False), MeanMetric()
    for value in (1.0, 2.0, 3.0):
        log(results, torch.tensor(value))
    assert moves.count <= 1
    results = SettledResults(training=False)
    for value in (1.0, 2.0, 3.0):
        metric(value)
        log(results, metric)
    assert moves.count <= 3


def test_a_result_that_is_elsewhere_moves() -> None:
    results = SettledResults(training=False)
    log(results, torch.tensor(1.0))
    result = log(results, torch.tensor(1.0, device="meta"))
    assert result.value.device.type == result.cumulated_batch_size.device.type == "meta"
