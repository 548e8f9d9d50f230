"""What every test shares: one thread, a fixed seed, and a working directory of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_counts() -> None:
    """A shell lets what it starts in the background ignore SIGINT; tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Test processes run side by side; more threads than cores only slow them down."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_determinism() -> Iterator[None]:
    """`Trainer(deterministic=True)` changes a setting of the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer left to its defaults writes into the working directory."""
    monkeypatch.chdir(tmp_path)
