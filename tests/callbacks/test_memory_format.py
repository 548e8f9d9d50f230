"""Candidates are evaluated in the memory format that is quick, as long as nobody notices."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_slimga.callbacks import survey
from tests.callbacks.small_fit import Net, assert_equal, assert_pruned, fitted, prune, widths


def in_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class Watched(Net):
    """Writes down how wide the network is whenever it validates, and in which format."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[tuple[int, int], bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if not torch.is_grad_enabled() and not self.training:
            self.seen.add((widths(self), in_channels_last(x)))
        return self.head(x.mean((2, 3)))


def test_candidates_alone_are_evaluated_in_channels_last() -> None:
    module = Watched()
    fit, _ = fitted(module, prune())
    assert_pruned(fit, module)
    assert {size for size, last in module.seen if last} > {widths(module)}
    assert {size for size, last in module.seen if not last} == {(8, 12), widths(module)}
    assert not any(in_channels_last(weight) for weight in module.parameters())


class Keeps(Net):
    """Its validation looks at features that ``forward`` has put aside, as the usual format."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = [self.body(x)]
        return self.head(self.features[0].mean((2, 3)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_size", self.features[0].view(len(batch[0]), -1).norm())


def test_a_validation_that_fails_in_it_is_run_in_the_usual_format(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO):
        fit, module = fitted(Keeps(), prune(racing=True))
    assert_pruned(fit, module)
    said = [record.message for record in caplog.records if "memory format" in record.message]
    assert len(said) == 1
    assert "the validation fails in channels-last (view size" in said[0]
    monkeypatch.setattr(survey, "runs_channels_last", lambda *_: False)
    assert_equal(fitted(Keeps(), prune(racing=True))[1], module)


class Fails(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.body[0].out_channels < 8:
            raise RuntimeError("a bug of one's own")


def test_a_validation_that_fails_anyway_says_so() -> None:
    module = Fails()
    with pytest.raises(RuntimeError, match="a bug of one's own"):
        fitted(module, prune())
    assert widths(module) == (8, 12)
    assert not any(in_channels_last(weight) for weight in module.parameters())
