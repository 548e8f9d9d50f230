"""A search that is interrupted at any evaluation and resumed ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_slimga import SparsityCallback, load_pruned
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    assert_pruned,
    lightning_2_6,
    prune,
    trainer,
    when_resumed,
    widths,
)

pytestmark = when_resumed


class StepError(Exception):
    """What the user's code raises."""


class Evaluations:
    """Counts the candidates and what they were, and raises in the middle of one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.masks: list[bytes] = []
        self.fail_at = -1
        self.inside = False
        original = CandidateEvaluation.fitness

        def fitness(run: CandidateEvaluation, mask: Any) -> float:
            self.masks.append(mask.tobytes())
            self.inside = True
            try:
                return original(run, mask)
            finally:
                self.inside = False

        monkeypatch.setattr(CandidateEvaluation, "fitness", fitness)

    def at_validation(self) -> None:
        if self.inside and len(self.masks) == self.fail_at:
            raise StepError


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    return Evaluations(monkeypatch)


class Watched(Net):
    """Runs a function in each validation step."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.at_validation()


def watched(at_validation: Any) -> Watched:
    module = Watched()
    module.at_validation = at_validation
    return module


def fit(folder: Path, module: Any, path: Any = None, **arguments: Any) -> pl.Trainer:
    """Three epochs, the search after the second; the last checkpoint stands in `folder`."""
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_last=True)
    sparsity = SparsityCallback(0.1)
    one = trainer(saver, sparsity, prune(prune_epoch=2, **arguments), max_epochs=3)
    one.fit(module, ckpt_path=path)
    return one


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = Net()
    fit(tmp_path_factory.mktemp("whole"), module)
    return module


@pytest.mark.parametrize("fail_at", [1, 3, 4, 5])
def test_an_exception_in_an_evaluation(
    tmp_path: Path, evaluations: Evaluations, uninterrupted: Any, fail_at: int
) -> None:
    evaluations.fail_at = fail_at
    broken = watched(evaluations.at_validation)
    before = [id(p) for p in broken.parameters()]
    with pytest.raises(StepError):
        fit(tmp_path, broken)
    assert widths(broken) == WIDTHS  # whatever candidate it was, the network is whole
    assert [id(p) for p in broken.parameters()] == before

    module = Net()
    resumed = fit(tmp_path, module, path=tmp_path / "last.ckpt")
    assert_equal(module, uninterrupted)
    assert_optimized(resumed, module)
    told = [*evaluations.masks[: fail_at - 1], *evaluations.masks[fail_at:]]
    assert len(set(told)) == len(told)  # nothing that was told has been evaluated again
    assert not list(tmp_path.glob("pruning_search*"))


def test_an_exception_in_each_of_several_attempts(
    tmp_path: Path, evaluations: Evaluations, uninterrupted: Any
) -> None:
    path = None
    for fail_at in (2, 5):
        evaluations.fail_at = fail_at
        with pytest.raises(StepError):
            fit(tmp_path, watched(evaluations.at_validation), path)
        path = tmp_path / "last.ckpt"
    module = Net()
    fit(tmp_path, module, path)
    assert_equal(module, uninterrupted)


def test_a_checkpoint_on_exception_carries_the_search(
    tmp_path: Path, evaluations: Evaluations, uninterrupted: Any
) -> None:
    evaluations.fail_at = 4
    saver = OnExceptionCheckpoint(tmp_path)
    callbacks = (saver, SparsityCallback(0.1), prune(prune_epoch=2))
    with pytest.raises(StepError):
        trainer(*callbacks, max_epochs=3, enable_checkpointing=True).fit(
            watched(evaluations.at_validation)
        )
    path = Path(saver.ckpt_path)
    assert load_pruned(Net, path).body[0].out_channels == WIDTHS[0]
    module = Net()
    fit(tmp_path / "other", module, path)
    assert_equal(module, uninterrupted)
    told = [*evaluations.masks[:3], *evaluations.masks[4:]]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("at", [1, 4])
def test_a_checkpoint_from_within_an_evaluation_is_of_the_full_network(
    tmp_path: Path, evaluations: Evaluations, uninterrupted: Any, at: int
) -> None:
    path = tmp_path / "middle.ckpt"

    def save() -> None:
        if evaluations.inside and len(evaluations.masks) == at:
            module.trainer.save_checkpoint(path)

    module = watched(save)
    one = fit(tmp_path / "first", module)
    assert_pruned(one, module)
    assert_equal(module, uninterrupted)

    saved = torch.load(path, weights_only=True)
    dense = torch.load(tmp_path / "first" / "epoch=1.ckpt", weights_only=True)
    assert saved["state_dict"]["body.0.weight"].shape[0] == WIDTHS[0]
    assert all(torch.equal(v, dense["state_dict"][k]) for k, v in saved["state_dict"].items())
    assert "lightning_slimga" not in saved
    done = len(evaluations.masks)
    again = Net()
    fit(tmp_path / "second", again, path)
    assert_equal(again, uninterrupted)
    assert len(evaluations.masks) - done == done - (at - 1)


@lightning_2_6
@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_from_within_an_evaluation_beside_an_average(
    tmp_path: Path, evaluations: Evaluations, order: int
) -> None:
    """Its file holds two states of the network, the average in the usual place."""

    def run(module: Any, folder: str, path: Any = None) -> Any:
        saver = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        callbacks = [of_lightning.EMAWeightAveraging(decay=0.9), prune(prune_epoch=2), saver]
        trainer(*callbacks[::order], max_epochs=3).fit(module, ckpt_path=path)
        return module

    path = tmp_path / "middle.ckpt"

    def save() -> None:
        if evaluations.inside and len(evaluations.masks) == 3:
            module.trainer.save_checkpoint(path)

    module = watched(save)
    whole = run(module, "first")
    assert sum(widths(whole)) < sum(WIDTHS)
    saved, dense = (
        torch.load(one, weights_only=True) for one in (path, tmp_path / "first" / "epoch=1.ckpt")
    )
    for key in ("state_dict", "current_model_state"):
        assert saved[key].keys() == dense[key].keys()
        assert all(torch.equal(value, dense[key][name]) for name, value in saved[key].items()), key
    assert_equal(run(Net(), "second", path), whole)


def test_other_settings_start_the_search_anew(tmp_path: Path, evaluations: Evaluations) -> None:
    evaluations.fail_at = 4
    with pytest.raises(StepError):
        fit(tmp_path, watched(evaluations.at_validation))
    module, fresh = Net(), Net()
    fit(tmp_path, module, tmp_path / "last.ckpt", seed=3)
    fit(tmp_path / "fresh", fresh, seed=3)
    assert_equal(module, fresh)
