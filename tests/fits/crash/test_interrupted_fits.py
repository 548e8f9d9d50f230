"""What an interruption leaves behind, and where the next fit takes it up; in one process."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import OnExceptionCheckpoint, Timer

from benchmarks.crash_sweep import same
from lightning_slimga import load_pruned
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from tests.fits.crash.training_script import EPOCHS, PRUNE_EPOCH, Net, train

FULL, CANDIDATES_BEFORE = (16, 24), 5
STATE = "pruning_search.pt"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Lightning ignores Ctrl-C from the first one on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _judging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell `Struck` which validation steps are those of candidates."""
    original = CandidateEvaluation.fitness

    def fitness(run: CandidateEvaluation, mask: Any) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(Struck, "judging", True)
            return original(run, mask)

    monkeypatch.setattr(CandidateEvaluation, "fitness", fitness)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return torch.load(folder / "final.pt", weights_only=True)


class Struck(Net):
    """Something happens in the last validation step of the sixth candidate."""

    when = 2 * (CANDIDATES_BEFORE + 1)
    judging = False  # a candidate
    steps: ClassVar[list[int]] = []  # what an instance counts is taken back by each evaluation

    def __init__(self, happens: Any) -> None:
        super().__init__()
        self.happens = happens
        self.steps.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.judging:
            self.steps.append(batch_idx)
            if len(self.steps) == self.when:
                self.happens()
        super().validation_step(batch, batch_idx)


def mistake() -> None:
    raise ZeroDivisionError("a mistake of the user's")


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def terminated() -> None:
    signal.raise_signal(signal.SIGTERM)


def strike(folder: Path, happens: Any, *callbacks: Callback) -> Net:
    """A fit that ends in the search, after five candidates have been judged."""
    module = Struck(happens)
    with pytest.raises((ZeroDivisionError, SystemExit)):
        train(folder, callbacks=callbacks, module=module)
    return module


def widths(module: Any) -> tuple[int, int]:
    return module.body[0].out_channels, module.body[3].out_channels


def evaluations(folder: Path) -> int:
    """Validations that the last fit has made for its search."""
    return int(json.loads((folder / "seen.json").read_text())["evaluations"])


@pytest.mark.parametrize("happens", [mistake, ctrl_c, terminated])
def test_nothing_is_cut_and_nothing_judged_is_lost(
    happens: Any, tmp_path: Path, undisturbed: Any
) -> None:
    module = strike(tmp_path, happens)
    assert widths(module) == FULL
    assert all(
        p.shape == q.shape for p, q in zip(module.parameters(), Net().parameters(), strict=True)
    )
    saved = torch.load(tmp_path / STATE, weights_only=True)["search"]
    # A signal waits for the end of the batch, which was the candidate's last one.
    judged = CANDIDATES_BEFORE + (happens is not mistake)
    assert len(saved["archive"]) == judged
    train(tmp_path)
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert same(undisturbed, final)
    assert evaluations(tmp_path) == 3 + final["candidates"] - judged  # three: the dense network
    assert not (tmp_path / STATE).exists()


def test_a_checkpoint_written_on_exception_holds_the_search(
    tmp_path: Path, undisturbed: Any
) -> None:
    strike(tmp_path, mistake, OnExceptionCheckpoint(tmp_path, filename="failed"))
    (tmp_path / STATE).unlink()
    path = tmp_path / "failed.ckpt"
    assert widths(load_pruned(Net, path)) == FULL
    train(tmp_path, ckpt_path=str(path))
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert same(undisturbed, final)
    assert evaluations(tmp_path) == 3 + final["candidates"] - CANDIDATES_BEFORE


class FailsAtSurgery(Callback):
    def on_surgery(self, *_: Any) -> None:
        mistake()


def test_a_mistake_after_the_cut_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    module = Net()
    failed = OnExceptionCheckpoint(tmp_path, filename="failed")
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, callbacks=[FailsAtSurgery(), failed], module=module)
    assert sum(widths(module)) < sum(FULL)
    small = load_pruned(Net, tmp_path / "failed.ckpt")
    assert same(small.state_dict(), module.state_dict())
    train(tmp_path, ckpt_path=str(tmp_path / "failed.ckpt"))
    assert evaluations(tmp_path) == 0  # the search is over
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert final["weights"]["head.weight"].shape == small.head.weight.shape
    assert final["epoch"] == EPOCHS


class Late(Timer):
    """Time is up once so many epochs are complete, when the network has been cut, or when told."""

    clock: ClassVar[list[str]] = []  # no state of the fit's, which a candidate could not change

    def __init__(self, epochs: int, interval: str) -> None:
        super().__init__(duration={"hours": 1}, interval=interval)
        self.epochs = epochs
        self.clock.clear()

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            self.clock.append("late")
        super().on_train_epoch_end(trainer, *args)

    def on_surgery(self, *_: Any) -> None:
        self.clock.append("late")

    def time_elapsed(self, *args: Any) -> float:
        return 1e6 if self.clock else 0.0


def test_time_is_up_before_the_search(tmp_path: Path, undisturbed: Any) -> None:
    module = Net()
    train(tmp_path, callbacks=[Late(PRUNE_EPOCH, "epoch")], module=module)
    assert widths(module) == FULL
    train(tmp_path)
    assert same(undisturbed, torch.load(tmp_path / "final.pt", weights_only=True))


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_time_runs_out_during_the_search(interval: str, tmp_path: Path, undisturbed: Any) -> None:
    """No batch more is trained, no epoch is counted, and the next fit goes on in the search."""
    timer = Late(EPOCHS, interval)
    module = Struck(lambda: Late.clock.append("late"))
    train(tmp_path, callbacks=[timer], module=module)
    assert widths(module) == FULL
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert final["epoch"] == PRUNE_EPOCH
    assert same(load_pruned(Net, tmp_path / "last.ckpt").state_dict(), module.state_dict())
    assert timer.end_time() is not None  # the hooks of the end were called
    judged = CANDIDATES_BEFORE + 1
    assert len(torch.load(tmp_path / STATE, weights_only=True)["search"]["archive"]) == judged
    train(tmp_path, callbacks=[timer])  # no more time than before: the state must survive
    assert evaluations(tmp_path) == 0
    train(tmp_path)
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert same(undisturbed, final)
    assert evaluations(tmp_path) == 3 + final["candidates"] - judged
    assert not (tmp_path / STATE).exists()


def test_time_runs_out_in_surgery(tmp_path: Path) -> None:
    module = Net()
    train(tmp_path, callbacks=[Late(EPOCHS, "step")], module=module)
    assert sum(widths(module)) < sum(FULL)
    small = load_pruned(Net, tmp_path / "last.ckpt")
    assert same(small.state_dict(), module.state_dict())
    train(tmp_path)
    assert evaluations(tmp_path) == 0
    assert torch.load(tmp_path / "final.pt", weights_only=True)["epoch"] == EPOCHS


def test_a_fit_in_another_thread_has_no_handlers(tmp_path: Path, undisturbed: Any) -> None:
    thread = threading.Thread(target=train, args=(tmp_path,))
    thread.start()
    thread.join()
    assert same(undisturbed, torch.load(tmp_path / "final.pt", weights_only=True))


def test_what_a_handler_changes_in_mid_candidate_stays(tmp_path: Path, undisturbed: Any) -> None:
    class Preempted(Callback):
        heard, whole = 0, False

    listener, module = Preempted(), Struck(lambda: signal.raise_signal(signal.SIGUSR1))
    module.when -= 1  # a batch is left of this candidate

    def handle(*_: Any) -> None:
        listener.heard += 1
        listener.whole = widths(module) == FULL

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        train(tmp_path, callbacks=[listener], module=module)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (listener.heard, listener.whole) == (1, True)
    assert same(undisturbed, torch.load(tmp_path / "final.pt", weights_only=True))
