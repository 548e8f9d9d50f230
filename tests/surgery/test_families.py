"""The families of the model zoos: exact, cheap to cost, and trainable afterwards."""

from __future__ import annotations

import pytest
import torch

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    assert_same,
    random_mask,
    randomise,
    snapshot,
    train_a_step,
)
from tests.networks.zoo import FAMILIES, make


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_shrunk_and_training_goes_on(family: str) -> None:
    model, x = make(family)
    randomise(model)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))

    for seed, share in enumerate((0.5, 0.2)):
        keep = random_mask(surgery, seed, share)
        assert_exact(surgery, x, keep)
        assert_macs_exact(surgery, x, keep)
    model.train()
    assert_same(before, snapshot(model))

    total = sum(p.numel() for p in model.parameters())
    least = surgery.params(random_mask(surgery, share=0.0))
    assert least / total < 0.1, "hardly anything of this network is removable"

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    train_a_step(model, x, optimizer)
    surgery.apply(keep, optimizers=[optimizer])
    assert sum(p.numel() for p in model.parameters()) == surgery.params(keep)
    train_a_step(model, x, optimizer)


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v3", "densenet", "unet"])
def test_masked_equals_shrunk_in_single_precision(family: str) -> None:
    model, x = make(family, torch.float32)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    assert_exact(surgery, x, random_mask(surgery))


def test_auxiliary_heads_are_compared_in_training_mode() -> None:
    model, x = make("googlenet")
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its noise has another shape in the small network
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    model.train()
    assert len(model(x)) == 3
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert_exact(surgery, x, keep, training=None)
