from __future__ import annotations

import re

import torch
from torch import nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery


def test_description_names_layers_costs_and_reasons() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    lines = str(ChannelSurgery(net, torch.randn(1, 3, 4, 4))).splitlines()
    # 16 positions x 27 inputs x 8 channels, and 128 x 5; 224 + 16 + 645 parameters.
    assert lines[0].startswith("8 removable channels in 1 layers; 4.10 k MACs, 885 parameters")
    assert re.split(r"\s{2,}", lines[3])[:2] == ["0", "8"]
    assert any("  4: reaches the output" in line for line in lines[4:])


def test_network_without_removable_channels() -> None:
    lines = str(ChannelSurgery(nn.Linear(4, 2), torch.randn(1, 4))).splitlines()
    assert lines[0].startswith("0 removable channels in 0 layers")
    assert lines[1] == "nothing can be removed"
    assert lines[2] == "what cannot go:"


def test_macs_that_are_not_counted_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(4, 6)
            self.rnn = nn.LSTM(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(self.read(x))[0]

    (note,) = ChannelSurgery(Recurrent(), torch.randn(3, 2, 4)).notes
    kernel = r"aten\.(lstm|mkldnn_rnn_layer)"  # which of them is torch's choice
    assert re.fullmatch(f"MACs leave out {kernel}, which torch's counter has no formula for", note)


def test_a_transposed_convolution_belongs_to_the_layer_that_it_makes() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1, bias=False),
        nn.ConvTranspose2d(6, 4, 2, 2, bias=False),
        nn.Conv2d(4, 3, 1, bias=False),
    )
    first, second = ChannelSurgery(net, torch.randn(1, 2, 5, 5)).report()["layers"]
    # 25 positions x 12 weights; 25 positions x 96 weights; 100 positions x 12 weights.
    assert (first["macs_share"], second["macs_share"]) == (300 / 3900, 2400 / 3900)
    assert (first["params_share"], second["params_share"]) == (12 / 120, 96 / 120)


class Bare(nn.Module):
    """Has a parameter of its own, outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.first(x) * self.scale)


def test_parameters_outside_of_any_layer_are_called_by_their_own_name() -> None:
    surgery = ChannelSurgery(Bare(), torch.randn(2, 4))
    (layer,) = surgery.report()["layers"]
    assert sorted(layer["coupled"]) == ["out", "scale"]
    assert re.search(r"(scale, out|out, scale)$", str(surgery).splitlines()[3])


def test_a_layer_that_such_a_parameter_makes_has_a_name() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(8, 4)), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(nn.functional.linear(x, self.weight).relu())

    (layer,) = ChannelSurgery(Plain(), torch.randn(2, 4)).layers
    assert (layer.name, layer.num_channels) == ("weight", 8)


def test_layers_too_small_to_lose_channels_are_not_counted() -> None:
    net = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 2))
    surgery = ChannelSurgery(net, torch.randn(2, 3), round_to=32)
    lines = str(surgery).splitlines()
    # Of 160 + 656 + 34 parameters, those that make or read the 40.
    assert lines[0].startswith("40 removable channels in 1 layers;")
    assert lines[0].endswith(", 96% of them in removable layers")
    assert [line.split()[0] for line in lines[3:] if re.match(r"\d ", line)] == ["0"]
    assert lines[-1] == "note: too small for that, so they stay whole: 2"
    assert surgery.report()["channels"] == 56  # bits of a mask, nevertheless

    lines = str(ChannelSurgery(net, torch.randn(2, 3), min_channels=64)).splitlines()
    assert lines[0].startswith("0 removable channels in 0 layers;")
    assert lines[0].endswith(", 0% of them in removable layers")
    assert lines[1] == "nothing can be removed"


def test_channels_that_one_group_holds_together_are_explained() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert "0, 1: its channels can only go all at once, as one group (of a GroupNorm" in str(
        ChannelSurgery(net, torch.randn(2, 3, 9, 9))
    )
