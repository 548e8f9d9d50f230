"""Logged metrics move where Lightning would have moved them, but not twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torchmetrics import MeanMetric

from lightning_slimga.callbacks.internals.results import SettledResults


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


class Moved(MeanMetric):
    """A user's metric that hears where it is sent."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        vars(self).setdefault("sent", []).append(args)
        return super().to(*args, **kwargs)


@pytest.mark.parametrize(("kind", "times"), [(_ResultCollection, 3), (SettledResults, 0)])
def test_a_metric_that_is_there_is_not_sent_there_again(kind: Any, times: int) -> None:
    results, metric = kind(training=False), Moved()
    metric(1.0)
    log(results, metric)
    first = len(vars(metric).get("sent", []))
    for value in (2.0, 3.0, 4.0):
        metric(value)
        log(results, metric)
    assert len(vars(metric).get("sent", [])) - first == times


def test_a_result_that_is_elsewhere_moves() -> None:
    results = SettledResults(training=False)
    log(results, torch.tensor(1.0))
    result = log(results, torch.tensor(1.0, device="meta"))
    assert result.value.device.type == result.cumulated_batch_size.device.type == "meta"
