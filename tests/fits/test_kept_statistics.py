"""Running statistics that a fit does not touch stay: nobody recalibrates a layer in eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fits.small_fit import WIDTHS, Net, fitted, prune, widths


class Kept(Net):
    """Its first norm has statistics of its own, which training leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.linspace(-1, 1, WIDTHS[0]))
            self.norm.running_var.copy_(torch.linspace(0.5, 2, WIDTHS[0]))
        self.moving: list[bool] = []

    @property
    def norm(self) -> Any:
        return self.body[1]

    def on_train_batch_end(self, *_: Any) -> None:
        self.moving.append(self.body[4].training)


class ByTrain(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.train()  # the Trainer leaves the modes as they are

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.norm.eval()
        return self


class AtEpochStart(Kept):
    def on_train_epoch_start(self) -> None:
        self.norm.eval()


class AtTrainStart(Kept):
    def on_train_start(self) -> None:
        self.norm.eval()


class InTheStep(Kept):
    """Whatever the flags say outside of it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.norm.eval()
        loss = super().training_step(batch, batch_idx)
        self.norm.train()
        return loss


class ByMomentum(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.norm.momentum = 0.0


class ByHand(AtEpochStart):
    """Manual optimization: only its validation can be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


KINDS = [ByTrain, AtEpochStart, AtTrainStart, InTheStep, ByMomentum, ByHand]


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("recalibration_batches", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_that_training_keeps_are_only_cut(kind: Any, recalibration_batches: int) -> None:
    seen: list[Tensor] = []

    class Watched(kind):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.norm.running_mean.clone())
            super().validation_step(batch, batch_idx)

    module = Watched()
    mean, variance = module.norm.running_mean.clone(), module.norm.running_var.clone()
    callback = prune(recalibration_batches=recalibration_batches)
    fitted(module, callback)
    assert callback.plan is not None
    cut = callback.plan.tensors["body.1.weight"].kept[0]
    assert torch.equal(module.norm.running_mean, mean[cut])
    assert torch.equal(module.norm.running_var, variance[cut])
    assert widths(module)[0] == len(cut) < WIDTHS[0]
    assert set(module.moving) == {True}
    assert len({len(one) for one in seen}) > 1  # candidates were among those that were seen
    assert all(set(one.tolist()) <= set(mean.tolist()) for one in seen)


def test_statistics_of_an_unfrozen_neighbour_are_taken_anew() -> None:
    """The second norm's are those of the small network, on which nothing has trained yet."""

    class Looks(AtEpochStart):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if (self.current_epoch, batch_idx) == (1, 0):
                self.after = self.body[4].running_var.clone()
                batches = [x for x, _ in self.train_dataloader()][:2]
                was = [m.training for m in self.modules()]
                self.eval()
                with torch.no_grad():
                    variances = [
                        self.body[:4](x).transpose(0, 1).flatten(1).var(1) for x in batches
                    ]
                for one, mode in zip(self.modules(), was, strict=True):
                    one.training = mode
                self.expected = torch.stack(variances).mean(0)

    module = Looks()
    fitted(module, prune(recalibration_batches=2))
    torch.testing.assert_close(module.after, module.expected)


def test_a_norm_without_statistics_is_no_obstacle() -> None:
    module = Kept()
    module.body[4] = nn.BatchNorm2d(WIDTHS[1], track_running_stats=False)
    callback = prune(recalibration_batches=2)
    fitted(module, callback)
    assert callback.plan is not None
    assert module.norm.num_features < WIDTHS[0] or module.body[4].num_features < WIDTHS[1]
