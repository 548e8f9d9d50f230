"""Recurrent layers, and what stands around them: one hidden size for all layers and directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_slimga import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    random_mask,
    randomise,
    train_a_step,
)


class Sequences(nn.Module):
    """A convolution over time, a recurrent layer, a linear head on the last step."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 24, **options: Any) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(4, width, 3, padding=1), nn.BatchNorm1d(width)
        self.recurrent = kind(width, 16, batch_first=True, **options)
        out = options.get("proj_size", 16) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.stem(x)))
        return self.head(self.recurrent(features.transpose(1, 2))[0][:, -1])


class Packed(nn.Module):
    """Sequences of several lengths, packed; one projection for all of their steps."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 12)
        self.recurrent = kind(12, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(torch.tanh(self.stem(x)), lengths, True, False)
        return self.head(pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0])


class Cells(nn.Module):
    """A cell that is called once for each step; it makes its own first state."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(5, 12), kind(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(torch.tanh(self.stem(step)), state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def _check(model: nn.Module, example: Any) -> ChannelSurgery:
    """Cut at random and for good: exact, counted, and trainable afterwards."""
    randomise(model)
    before = sum(p.numel() for p in model.parameters())
    surgery = ChannelSurgery(model, example)
    assert surgery.params(random_mask(surgery, share=0.0)) < 0.5 * before
    for seed in range(2):
        keep = random_mask(surgery, seed)
        assert_exact(surgery, example, keep)
        assert_macs_exact(surgery, example, keep)
    optimizer = torch.optim.Adam(model.parameters())
    surgery.apply(keep, [optimizer])
    train_a_step(model, example, optimizer)
    return surgery


CASES = [
    (nn.LSTM, {}),
    (nn.LSTM, {"bias": False, "width": 16}),
    (nn.LSTM, {"proj_size": 6, "bidirectional": True}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)  # other kernels
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_inputs_and_hidden_channels_go(
    kind: type[nn.RNNBase], options: dict[str, Any], dtype: torch.dtype
) -> None:
    model, x = Sequences(kind, **options).to(dtype), torch.randn(3, 4, 9, dtype=dtype)
    surgery = _check(model, x)
    sizes = [options.get("width", 24), 16, *([6] if "proj_size" in options else [])]
    assert sorted(layer.num_channels for layer in surgery.layers) == sorted(sizes)


def test_what_a_recurrent_layer_keeps_of_its_tensors_is_cut_along() -> None:
    model = Sequences(nn.LSTM, num_layers=2).double()
    surgery = ChannelSurgery(model, torch.randn(3, 4, 9, dtype=torch.float64))
    surgery.apply(random_mask(surgery))
    layer = model.recurrent
    assert layer.input_size == model.stem.out_channels < 24
    assert 4 * layer.hidden_size == len(layer.weight_hh_l1) < 64
    named = [getattr(layer, name) for name in layer._flat_weights_names]
    assert all(a is b for a, b in zip(layer._flat_weights, named, strict=True))
    layer.flatten_parameters()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences(kind: type[nn.RNNBase]) -> None:
    x, lengths = torch.randn(3, 6, 5, dtype=torch.float64), torch.tensor([4, 6, 2])
    surgery = _check(Packed(kind).double(), (x, lengths))
    assert sorted(layer.num_channels for layer in surgery.layers) == [8, 12]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_that_a_network_calls_itself(kind: type[nn.RNNCellBase]) -> None:
    surgery = _check(Cells(kind).double(), torch.randn(3, 4, 5, dtype=torch.float64))
    assert sorted(layer.num_channels for layer in surgery.layers) == [8, 12]


def test_a_first_state_of_a_size_in_the_code_keeps_the_hidden_channels() -> None:
    class Stated(Sequences):
        def forward(self, x: Tensor) -> Tensor:
            features, state = self.norm(self.stem(x)).transpose(1, 2), x.new_ones(1, len(x), 16)
            return self.head(self.recurrent(features, state)[1][0])

    model = Stated(nn.GRU).double()
    surgery = ChannelSurgery(model, torch.randn(3, 4, 9, dtype=torch.float64))
    assert [layer.num_channels for layer in surgery.layers] == [24]
    assert any("a size is written into the code" in reason for *_, reason in surgery.frozen)
