from __future__ import annotations

from typing import Any

import pytest
from torch.backends import cudnn

from lightning_slimga.running.swapped import swapped


class Thing:
    inherited = 1

    def __init__(self) -> None:
        self.own = 2
        self._kept = 3

    @property
    def kept(self) -> int:
        return self._kept

    @kept.setter
    def kept(self, value: int) -> None:
        self._kept = value


@pytest.mark.parametrize("error", [None, KeyError])
def test_all_is_as_it_was(error: Any) -> None:
    thing = Thing()
    before = dict(vars(thing))
    try:
        with swapped(thing, inherited=10, own=20, kept=30, new=40):
            assert (thing.inherited, thing.own, thing.kept, thing.new) == (10, 20, 30, 40)  # type: ignore[attr-defined]
            if error:
                raise error
    except KeyError:
        pass
    assert vars(thing) == before
    assert (thing.inherited, Thing.inherited) == (1, 1)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_setting_of_torch_that_is_no_attribute(
    wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn, "benchmark", wanted)
    with swapped(cudnn, benchmark=not wanted):
        assert cudnn.benchmark is not wanted
    assert cudnn.benchmark is wanted


def test_what_is_deleted_meanwhile_needs_no_restoring() -> None:
    thing = Thing()
    with swapped(thing, new=1):
        del thing.new  # type: ignore[attr-defined]
    assert not hasattr(thing, "new")
