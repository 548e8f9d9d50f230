"""After surgery inside a fit, training goes on as it would on a small network built by hand."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.fits.small_fit import Net, assert_pruned, data, fitted, prune, widths

STEPS = 5


class LongerEpoch(Net):
    """As many batches after the surgery as are compared."""

    def train_dataloader(self) -> Any:
        return DataLoader(data(12 * STEPS), batch_size=12, shuffle=True)


class Witness(pl.Callback):
    """Keeps the full network before surgery, and each batch and all weights after it."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            names = {p: name for name, p in pl_module.named_parameters()}
            optimizer = trainer.optimizers[0]
            self.full = copy.deepcopy(pl_module.state_dict())
            self.moments = {names[p]: copy.deepcopy(s) for p, s in optimizer.state.items()}

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        """What is kept here is meant to stay whole."""

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1:
            self.batches.append(batch)
            named = pl_module.named_parameters()
            self.weights.append({name: p.detach().clone() for name, p in named})


def cut_by_hand(name: str, tensor: Any, first: Tensor, second: Tensor) -> Any:
    """Which rows and columns a person would keep of each tensor of `Net`."""
    if not torch.is_tensor(tensor) or not tensor.dim():  # step counters
        return tensor
    if name.startswith(("body.0.", "body.1.")):
        return tensor[first]
    if name == "body.3.weight":
        return tensor[second][:, first]
    if name.startswith("body.4."):
        return tensor[second]
    return tensor[:, second] if name == "head.weight" else tensor


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_next_steps_are_those_of_a_small_network_built_by_hand(optimizer: str) -> None:
    witness, callback = Witness(), prune(budget={"macs": 0.35}, min_channels=4)
    fit, module = fitted(LongerEpoch(optimizer=optimizer), witness, callback)
    assert_pruned(fit, module)

    cuts = [callback.plan.tensors[name] for name in ("body.1.weight", "body.4.weight")]
    kept = [cut.kept[0] for cut in cuts]
    small = LongerEpoch(widths(module), optimizer)
    small.load_state_dict({k: cut_by_hand(k, v, *kept) for k, v in witness.full.items()})
    other = small.configure_optimizers()
    for name, parameter in small.named_parameters():
        other.state[parameter] = {
            key: cut_by_hand(name, value, *kept) for key, value in witness.moments[name].items()
        }
    for batch, wanted in zip(witness.batches, witness.weights, strict=True):
        other.zero_grad()
        torch.nn.functional.cross_entropy(small(batch[0]), batch[1]).backward()
        other.step()
        for name, parameter in small.named_parameters():
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-6, atol=1e-6)
    assert len(witness.batches) == STEPS
    assert any(not torch.equal(witness.weights[0][n], witness.weights[-1][n]) for n in wanted)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_parameter_is_trained_after_surgery(optimizer: str) -> None:
    """A dead tensor in the optimizer would raise no error, the live one would just stand still."""
    witness = Witness()
    fit, module = fitted(Net(optimizer=optimizer), witness, prune())
    assert_pruned(fit, module)
    for name, parameter in module.named_parameters():
        if name != "body.0.bias":  # the batch norm behind it takes its gradient away
            assert not torch.equal(parameter, witness.weights[0][name]), name
