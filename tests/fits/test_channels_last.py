"""Candidates are evaluated in the memory format that is quick, as long as nobody notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lightning_slimga.callbacks.prune import survey
from tests.fits.small_fit import Net, assert_equal, assert_pruned, fitted, prune, widths


def in_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


SEEN: set[tuple[tuple[int, int], bool]] = set()
"""Where no candidate's trace is taken back."""


class Watched(Net):
    """Writes down how wide the network is whenever it validates, and in which format."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if not torch.is_grad_enabled() and not self.training:
            SEEN.add((widths(self), in_channels_last(x)))
        return self.head(x.mean((2, 3)))


def test_candidates_alone_are_evaluated_in_channels_last() -> None:
    SEEN.clear()
    module = Watched()
    fit, _ = fitted(module, prune())
    assert_pruned(fit, module)
    assert {size for size, last in SEEN if last} > {widths(module)}
    assert {size for size, last in SEEN if not last} >= {(8, 12), widths(module)}


class Keeps(Net):
    """Its validation looks at features that ``forward`` has put aside, as the usual format."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = [self.body(x)]
        return self.head(self.features[0].mean((2, 3)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_size", self.features[0].view(len(batch[0]), -1).norm())


class Auxiliary(Net):
    """What only training calls wants the usual format."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        return super().training_step(batch, batch_idx) + self.auxiliary(x)

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = Flat(self.body)


class Flat(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(len(x), -1).square().mean()


class Ends(Net):
    """Calls a part of the network, and looks at its parameters, when its validation ends."""

    def on_validation_epoch_end(self) -> None:
        features = self.body(torch.ones(2, 2, 6, 6))
        norm = parameters_to_vector(self.parameters()).norm()
        self.log("val_norm", features.view(2, -1).norm() + norm)


def usual(monkeypatch: pytest.MonkeyPatch, kind: type[Net]) -> Net:
    """The module after a fit whose candidates are evaluated in the usual format."""
    monkeypatch.setattr(survey, "runs_channels_last", lambda *_: False)
    return fitted(kind(), prune(racing=True))[1]


@pytest.mark.parametrize("kind", [Keeps, Auxiliary])
def test_where_a_fit_wants_the_usual_format_it_has_it(
    kind: type[Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, module = fitted(kind(), prune(racing=True))
    assert_pruned(fit, module)
    assert_equal(usual(monkeypatch, kind), module)


def test_what_was_not_tried_in_channels_last_has_the_usual_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, module = fitted(Ends(), prune(racing=True))
    assert_pruned(fit, module)
    assert widths(usual(monkeypatch, Ends)) == widths(module)


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
