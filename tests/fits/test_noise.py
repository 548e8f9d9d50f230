"""A validation that says nothing, or another thing each time: it is found, and people are told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_pruned,
    data,
    fitted,
    prune,
    trainer,
    when_resumed,
    widths,
)

pytestmark = when_resumed


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


class WorthNothing(Net):
    """Its metric is not finite, of any network that has lost a channel."""

    value = math.nan

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss if sum(widths(self)) == sum(WIDTHS) else self.value)


class NanAfterTheFirst(Net):
    """Its metric is finite on one batch alone."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss * math.nan if batch_idx else loss)

    def val_dataloader(self) -> Any:
        return DataLoader(data(20, seed=1), batch_size=10)


@pytest.mark.filterwarnings("ignore:.*of a candidate is NaN")
@pytest.mark.filterwarnings("ignore:search ended. no signal")
@pytest.mark.parametrize(
    ("make", "value", "arguments", "message"),
    [
        (WorthNothing, math.nan, {}, r"but of 4 the best one has nan, and the uncut network \d"),
        (WorthNothing, math.inf, {}, r"but of 4 the best one has inf, and the uncut network \d"),
        (WorthNothing, math.nan, {"population_size": 8, "generations": 3}, r"of 1\d the best"),
        (NanAfterTheFirst, 0, {"fitness_batches": 1}, "the best one has nan"),
    ],
)
def test_no_candidate_with_a_metric_cuts_nothing(
    make: type[Net], value: float, arguments: Any, message: str, tmp_path: Path
) -> None:
    """To take the first of them would be to prune by chance."""
    module, save = make(), ModelCheckpoint(tmp_path, save_last=True)
    module.value = value
    settings = {"generations": 1, "racing": False, **arguments}
    callback = prune(**settings)
    with pytest.raises(
        MisconfigurationException, match=f"Expected `val_loss` to be finite .*{message}"
    ):
        fitted(module, callback, save)
    assert widths(module) == WIDTHS
    assert callback.plan is None
    dense = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, dense[name]) for name, value in module.state_dict().items())
    assert not list(tmp_path.glob("pruning_search*"))

    again, fit = Net(), trainer(prune(**settings))
    fit.fit(again, ckpt_path=tmp_path / "last.ckpt")
    assert_pruned(fit, again)


@pytest.mark.filterwarnings("ignore:.*of a candidate is NaN")
def test_why_such_a_search_has_ended_is_a_sentence() -> None:
    with (
        pytest.warns(UserWarning, match="none of .* has a finite metric; .*data[?]$") as w,
        pytest.raises(MisconfigurationException),
    ):
        fitted(WorthNothing(), prune(population_size=8))
    assert not any("first of equals" in str(one.message) for one in w)


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
