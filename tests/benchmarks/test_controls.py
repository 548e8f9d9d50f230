from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from benchmarks import controls
from lightning_slimga import ChannelSurgery


def network() -> ChannelSurgery:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    return ChannelSurgery(net, torch.randn(1, 2, 6, 6))


def limit_of(surgery: ChannelSurgery, share: float) -> float:
    return share * surgery.macs(torch.ones(surgery.num_channels, dtype=torch.bool))


def test_threshold_is_the_best_of_all_thresholds() -> None:
    surgery = network()
    limit, scores = limit_of(surgery, 0.5), torch.from_numpy(surgery.scores())
    thresholds = [scores >= least for least in scores]
    starts = [layer.slice for layer in surgery.layers]
    legal = [m for m in thresholds if all(m[at].any() for at in starts)]
    expected = max((m for m in legal if surgery.macs(m) <= limit), key=lambda m: int(m.sum()))
    assert torch.equal(controls.threshold(surgery, limit), expected)


def test_per_mac_drops_the_channels_that_save_most_for_their_score() -> None:
    surgery = network()
    limit = limit_of(surgery, 0.5)
    mask = controls.per_mac(surgery, limit)
    everything = torch.ones(surgery.num_channels, dtype=torch.bool)

    def worth(channel: int) -> float:
        without = everything.clone()
        without[channel] = False
        return surgery.scores()[channel] / (surgery.macs(everything) - surgery.macs(without))

    kept, dropped = mask.nonzero().ravel().tolist(), (~mask).nonzero().ravel().tolist()
    assert surgery.macs(mask) <= limit
    assert min(map(worth, kept)) >= max(map(worth, dropped))


def test_uniform_cut_keeps_the_largest_of_the_same_share() -> None:
    surgery = network()
    mask = controls.uniform(surgery, limit_of(surgery, 0.5))
    assert surgery.macs(mask) <= limit_of(surgery, 0.5)
    shares = [float(mask[layer.slice].float().mean()) for layer in surgery.layers]
    assert abs(shares[0] - shares[1]) < 1 / 6
    for layer in surgery.layers:
        kept, scores = mask[layer.slice].numpy(), surgery.scores()[layer.slice]
        assert scores[kept].min() >= scores[~kept].max()


def test_random_widths_differ_and_meet_the_limit() -> None:
    surgery = network()
    limit = limit_of(surgery, 0.4)
    draws = controls.random_widths(surgery, limit, np.random.default_rng(0))
    masks = list(itertools.islice(draws, 20))
    assert all(surgery.macs(mask) <= limit for mask in masks)
    assert all(mask[layer.slice].any() for mask in masks for layer in surgery.layers)
    assert len({tuple(mask.tolist()) for mask in masks}) > 5
