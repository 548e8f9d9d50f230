"""What a search would refuse is known after the first validation, and learning it costs nothing."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lightning_slimga.callbacks.prune import callback as module
from tests.fits.small_fit import Net, assert_equal, assert_pruned, data, fitted, prune

SEARCHED_LATER = {"max_epochs": 4}


class Counted(Net):
    """Counts its training steps by the moment at which the fit ends."""

    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


@pytest.mark.parametrize(("sanity", "steps"), [(2, 0), (0, 2)])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"monitor": "val_los"},
            r"`monitor` to be .* got 'val_los'.*Did you mean 'val_loss'\? Log",
        ),
        ({"monitor": "acc"}, "`monitor` to be a metric that validation logs, but got 'acc'"),
        ({"budget": {"macs": 0.001}}, "budget"),
        ({"budget": {"params": 2}}, "budget"),
        ({"ignore": ["body.*"]}, "found no channel that can be removed"),
        ({"min_channels": 12, "budget": {"macs": 0.2}}, "budget"),
        (
            {
                "budget": [{"macs": 0.5}, {"macs": 0.001}],
                "prune_epochs": [2, 3],
                "prune_epoch": None,
            },
            "budget",
        ),
    ],
)
def test_it_is_known_before_the_sparse_epochs(
    sanity: int, steps: int, arguments: dict[str, Any], message: str
) -> None:
    net = Counted()
    callback = prune(**{"prune_epoch": 3, **arguments})
    with pytest.raises(MisconfigurationException, match=message):
        fitted(net, callback, num_sanity_val_steps=sanity, **SEARCHED_LATER)
    assert net.steps == steps


class Drawing(Net):
    """Draws from all generators, in training and in validation, and in workers."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(1)
        self.seen: list[Any] = []

    def forward(self, x: Any) -> Any:
        features = nn.functional.dropout(self.body(x), 0.3, self.training)
        return self.head(features.mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        drawn = random.random(), float(np.random.rand()), float(torch.rand(1, generator=self.own))
        self.seen.append((drawn, float(batch[0].sum())))
        batch[0] += 0.1 * torch.randn_like(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = torch.randn(batch[0].shape, generator=self.own)
        super().validation_step([batch[0] + noise * random.random(), batch[1]], batch_idx)


class Workers(Drawing):
    def train_dataloader(self) -> Any:
        return DataLoader(data(), 12, shuffle=True, num_workers=1, persistent_workers=True)


@pytest.mark.parametrize("make", [Drawing, Workers])
@pytest.mark.parametrize("sanity", [0, 2])
def test_until_the_search_the_fit_is_the_one_without(
    make: Any, sanity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[int] = []
    original = module.rehearse

    def rehearse(trainer: pl.Trainer, *arguments: Any) -> None:
        original(trainer, *arguments)
        rehearsed.append(trainer.global_step)

    monkeypatch.setattr(module, "rehearse", rehearse)
    monkeypatch.setattr(module.GeneticPruneCallback, "_prune", lambda *_: None)
    _, plain = fitted(make(), num_sanity_val_steps=sanity, max_epochs=3)
    searching = prune(prune_epoch=2)
    with pytest.warns(UserWarning, match="nothing was pruned"):
        fit, net = fitted(make(), searching, num_sanity_val_steps=sanity, max_epochs=3)
    assert rehearsed == [0 if sanity else fit.num_training_batches]
    assert net.seen == plain.seen
    assert_equal(net, plain)


class Sensitive(Net):
    """Cannot be run in this way before it has learnt something."""

    learnt = False

    def on_train_epoch_end(self) -> None:
        self.learnt = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.learnt and not self.trainer.sanity_checking:
            raise ArithmeticError("too early")
        super().validation_step(batch, batch_idx)


def test_what_goes_wrong_in_the_rehearsal_alone_does_not_matter() -> None:
    net = Sensitive()
    net.check = None
    fit, net = fitted(net, prune(), num_sanity_val_steps=1, check_val_every_n_epoch=2, max_epochs=3)
    assert_pruned(fit, net)


def test_a_fit_without_a_way_to_log_is_refused_at_once() -> None:
    net = Counted()
    fit = pl.Trainer(barebones=True, max_epochs=3, accelerator="cpu", callbacks=[prune()])
    with pytest.raises(
        MisconfigurationException, match=r"barebones=True.* drops all .* leave that"
    ):
        fit.fit(net)
    assert net.steps == 0


@pytest.mark.filterwarnings("ignore:The fit ended after")
def test_too_few_steps_are_told_at_once() -> None:
    with pytest.warns(
        UserWarning, match=r"`max_steps=3` will end the fit .* takes 4 steps: .* abo"
    ):
        fitted(Net(), prune(prune_epoch=2), max_epochs=-1, max_steps=3)
