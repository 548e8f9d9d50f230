from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Timer

from lightning_slimga.callbacks.internals import FitnessEvaluator
from tests.fits.small_fit import WIDTHS, Net, assert_pruned, fitted, prune, trainer, widths


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """Every Timer's time is up from the fourth evaluation on, or another; what ran in the fit."""
    heard: list[str] = []
    last = getattr(request, "param", 4)
    evaluate = FitnessEvaluator.__call__

    def counted(self: FitnessEvaluator, **arguments: Any) -> float:
        heard.append("evaluation")
        return evaluate(self, **arguments)

    def elapsed(*_: Any) -> float:
        return 1e6 if heard.count("evaluation") >= last else 0.0

    monkeypatch.setattr(FitnessEvaluator, "__call__", counted)
    monkeypatch.setattr(Timer, "time_elapsed", elapsed)
    return heard


class Hears(pl.Callback):
    """The hooks at the ends of batches, epochs and the fit."""

    def __init__(self, heard: list[str]) -> None:
        for hook in ("on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end"):
            setattr(self, hook, lambda *_, hook=hook: heard.append(hook))


def test_a_limit_of_the_trainer_ends_the_fit_in_the_search(late: list[str]) -> None:
    """It does after the first candidate; the uncut network goes before, twice and recalibrated."""
    module = Net()
    fit = trainer(Hears(late), prune(), max_time={"hours": 1}, max_epochs=3)
    with pytest.warns(UserWarning, match=r"Time is up in the middle of the search: nothing was"):
        fit.fit(module)
    batches = ["on_train_batch_end"] * 2
    ends = ["on_train_epoch_end", *["evaluation"] * 4, "on_train_end", "on_fit_end"]
    assert late == [*batches, *ends]
    assert widths(module) == WIDTHS
    assert fit.should_stop
    assert fit.state.finished
    assert (fit.current_epoch, fit.global_step) == (1, 2)
    assert "on_advance_end" not in vars(fit.fit_loop)
    assert {"val_loss", "train_loss"} <= set(fit.callback_metrics)


@pytest.mark.parametrize("late", [9], indirect=True)
def test_time_that_is_up_among_the_finalists(late: list[str]) -> None:
    """Three evaluations of the uncut network, four of candidates, and two of four finalists."""
    few = prune(fitness_batches=1, max_evaluations=4)
    with pytest.warns(UserWarning, match="Time is up in the middle"):
        _, module = fitted(Net(), Timer({"hours": 1}), few)
    assert late.count("evaluation") == 9
    assert widths(module) == WIDTHS


def test_the_fewest_epochs_go_before(late: list[str]) -> None:
    """As in Lightning: the fit goes on until they are complete."""
    fit, module = fitted(Net(), Timer({"hours": 1}), prune(), min_epochs=2, max_epochs=4)
    assert_pruned(fit, module)
    assert fit.current_epoch == 2


def test_a_timer_without_a_limit(late: list[str]) -> None:
    fit, module = fitted(Net(), Timer(), prune())
    assert_pruned(fit, module)


def test_a_timer_of_another_package_and_a_mere_namesake(late: list[str]) -> None:
    named = type("Timer", (pl.Callback,), {})
    fit, module = fitted(Net(), named(), prune())
    assert_pruned(fit, module)
    limited = type("Timer", (pl.Callback,), {"time_remaining": Timer({"hours": 1}).time_remaining})
    with pytest.warns(UserWarning, match="Time is up in the middle"):
        _, module = fitted(Net(), type("Mine", (limited,), {})(), prune())
    assert widths(module) == WIDTHS
