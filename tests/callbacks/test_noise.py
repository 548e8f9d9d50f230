"""A validation that says nothing, or another thing each time: it is found, and people are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.callbacks.small_fit import Net, assert_pruned, fitted, prune


class Shaking(Net):
    """Its metric moves from one validation to the next."""

    shakes: Iterator[float]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss + next(self.shakes))


class Dropping(Net):
    """Draws random numbers in validation, which are seeded."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = nn.functional.dropout(self(batch[0]), 0.5, training=True)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))


class Constant(Net):
    """Its metric is that of any network."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self.log("val_loss", 0.5)


def test_noise_is_measured_and_said() -> None:
    module = Shaking()
    module.shakes = cycle([0.0, 0.05])
    with pytest.warns(UserWarning, match=r"`val_loss` of the same network came out as .* and as"):
        fit, module = fitted(module, prune())
    assert_pruned(fit, module)


def test_metrics_that_differ_by_no_more_than_noise_stop_the_search() -> None:
    callback = prune(population_size=8, generations=20)
    module = Shaking()
    module.shakes = chain([0.0, 1000.0], cycle([0.0, 500.0]))
    with (
        pytest.warns(UserWarning, match="`val_loss` of the same network"),
        pytest.warns(UserWarning, match="no signal: the metrics of .* candidates lie within"),
    ):
        fit, module = fitted(module, callback)
    assert len(callback.history) <= 2
    assert_pruned(fit, module)


def test_a_constant_metric_stops_the_search() -> None:
    callback = prune(population_size=8, generations=20)
    with pytest.warns(UserWarning, match="search ended: no signal: all .* candidates have"):
        fit, module = fitted(Constant(), callback)
    assert len(callback.history) <= 2
    assert_pruned(fit, module)


def test_random_numbers_of_torch_are_no_noise() -> None:
    fit, module = fitted(Dropping(), prune())  # warnings are errors
    assert_pruned(fit, module)


def test_the_report_shows_what_the_search_saw_and_what_all_data_say(tmp_path: Path) -> None:
    class TwoBatches(Net):
        def val_dataloader(self) -> Any:
            loader = super().val_dataloader()
            return type(loader)(loader.dataset, batch_size=10)

    callback = prune(fitness_batches=1, report=True)
    fit, module = fitted(TwoBatches(), callback, default_root_dir=tmp_path)
    assert_pruned(fit, module)
    (path,) = tmp_path.rglob("report.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    page = path.with_name("report.md").read_text(encoding="utf-8")
    assert report["fitness_in_search"] != report["search_fitness"]
    assert f"the search saw: {report['fitness_in_search']:.4f}" in page
    assert f"right after surgery: **{report['search_fitness']:.4f}**" in page
    assert f"| **genetic search** | **{report['fitness_in_search']:.4f}** |" in page
    assert callback.history[-1]["best"] <= report["fitness_in_search"]
