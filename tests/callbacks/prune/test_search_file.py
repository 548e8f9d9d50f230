from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_slimga.callbacks.prune.search_file import SearchFile, remove_search_file

NAME = "pruning_search.pt"


def trainer(folder: Path | None, **attributes: Any) -> Any:
    """As much of a Trainer as there is to ask."""
    checkpoints = [] if folder is None else [SimpleNamespace(dirpath=str(folder))]
    strategy = SimpleNamespace(broadcast=lambda value, src: value)
    defaults = {"is_global_zero": True, "ckpt_path": None, "global_step": 3}
    return SimpleNamespace(
        checkpoint_callbacks=checkpoints, strategy=strategy, **{**defaults, **attributes}
    )


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


def state(seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "archive": [["ff", 0.5]]}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    SearchFile(trainer(tmp_path), network(), "a").write(state(1.0))
    assert SearchFile(trainer(tmp_path), network(), "a").read() == state(1.0)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("other", ["weights", "settings", "step"])
def test_a_state_of_something_else_is_not_taken_up(tmp_path: Path, other: str) -> None:
    SearchFile(trainer(tmp_path), network(), "a").write(state(1.0))
    changed = {
        "weights": (trainer(tmp_path), network(1), "a"),
        "settings": (trainer(tmp_path), network(), "b"),
        "step": (trainer(tmp_path, global_step=4), network(), "a"),
    }
    assert SearchFile(*changed[other]).read() is None


def test_the_longest_search_is_taken_up(tmp_path: Path) -> None:
    resumed, new = tmp_path / "version_0", tmp_path / "version_1"
    SearchFile(trainer(resumed), network(), "a").write(state(2.0))
    file = SearchFile(trainer(new, ckpt_path=str(resumed / "last.ckpt")), network(), "a")
    assert file.read() == state(2.0)
    assert file.read(file.packed(state(1.0))) == state(2.0)
    assert file.read(file.packed(state(3.0))) == state(3.0)
    foreign = SearchFile(trainer(new), network(1), "a").packed(state(4.0))
    assert file.read(foreign) == state(2.0)


def test_a_damaged_file_is_named_and_ignored(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"half of a fi")
    with pytest.warns(UserWarning, match=rf"{NAME} cannot be read"):
        assert SearchFile(trainer(tmp_path), network(), "a").read() is None


def test_a_full_disk_does_not_end_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    file = SearchFile(trainer(tmp_path), network(), "a")
    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left on device.*has to start over"):
        file.write(state(1.0))
    file.write(state(2.0))  # said once


def test_other_ranks_do_not_write(tmp_path: Path) -> None:
    SearchFile(trainer(tmp_path, is_global_zero=False), network(), "a").write(state(1.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [None, "s3://bucket/run"])
def test_without_checkpoints_here_there_is_nothing_to_resume(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = SearchFile(trainer(folder), network(), "a")
    file.write(state(1.0))
    assert file.read() is None
    assert list(tmp_path.iterdir()) == []
    remove_search_file(trainer(folder))


def test_removal_also_takes_what_a_killed_run_has_left(tmp_path: Path) -> None:
    SearchFile(trainer(tmp_path), network(), "a").write(state(1.0))
    (tmp_path / "pruning_search.4711.partial").touch()
    (tmp_path / "last.ckpt").touch()
    remove_search_file(trainer(tmp_path, is_global_zero=False))
    assert len(list(tmp_path.iterdir())) == 3
    remove_search_file(trainer(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_weights_may_still_be_resized(tmp_path: Path) -> None:
    """Torch refuses to resize what NumPy has looked at."""
    module = network()
    SearchFile(trainer(tmp_path), module, "a")
    assert module.weight.detach().resize_(3, 5).shape == (3, 5)
