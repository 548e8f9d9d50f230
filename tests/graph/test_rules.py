"""Every op rule against the real op: a network around it, cut at random, must stay exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.graph.registry import _RULES
from lightning_slimga.running.calls import Call
from lightning_slimga.surgery.analysis import analyse
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.graph.rows import CHANNELS, ROWS, Row
from tests.networks.checks import assert_exact, random_mask, randomise, train_a_step

UNREACHED = {
    # Kernels of other devices, and of newer or older versions of torch.
    "aten::cudnn_batch_norm", "aten::miopen_batch_norm", "aten::batch_norm_elemt",
    "aten::_batch_norm_with_update", "aten::_batch_norm_no_update",
    "aten::_native_batch_norm_legit", "aten::_native_batch_norm_legit_no_training",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_addmm_activation",
    "aten::_reshape_alias", "aten::_fused_rms_norm",
    "aten::_cudnn_rnn", "aten::miopen_rnn", "aten::_thnn_fused_lstm_cell",
    "aten::_thnn_fused_gru_cell", "aten::_index_put_impl",
    # Of float32 alone: tests/graph/test_recurrent.py, tests/graph/test_messages.py.
    "aten::mkldnn_rnn_layer", "aten::_grouped_mm",
}  # fmt: skip


class Around(nn.Module):
    """3 channels -> 8 -> the op -> a linear map of everything."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        rank = len(row.spatial)
        convolutions = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        self.stem = convolutions[rank](3, CHANNELS, *([1] if rank else []))
        self.example = torch.rand(2, 3, *row.spatial, dtype=torch.float64)
        middle = row.middle
        made = middle.__code__.co_argcount == 0 if hasattr(middle, "__code__") else False
        if made or isinstance(middle, type):
            middle = middle()
        self.middle: Callable[[Tensor], Tensor] = middle
        self.double()
        out = self.middle(torch.tanh(self.stem(self.example)))
        self.head = nn.Linear(out[0].numel(), 4).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(torch.tanh(self.stem(x)) + 0.25)
        return self.head(y.flatten(1))


def _name(row: Row) -> str:
    return row.op.partition("::")[2]


@pytest.mark.parametrize("row", ROWS, ids=_name)
def test_the_rule_agrees_with_the_op(row: Row) -> None:
    model = Around(row)
    randomise(model)
    example = model.example
    analysis = analyse(model, [Call("", (example,))], [Call("", (example,))])
    met = {record.name for records in analysis.records.values() for record in records}
    assert row.op in met
    broken = [r for r in analysis.trace.store.reasons if "no rule" in r or "rule of" in r]
    assert not broken

    surgery = ChannelSurgery(model, example)
    assert surgery.num_channels == row.free
    for seed in range(2):
        assert_exact(surgery, example, random_mask(surgery, seed))
    surgery.apply(random_mask(surgery))
    train_a_step(model, example, torch.optim.SGD(model.parameters(), lr=1e-3))


def test_every_rule_has_a_row() -> None:
    names = {row.op for row in ROWS} | {row.op.rstrip("_") for row in ROWS}
    missing = {name for name in _RULES if name not in names | UNREACHED | {"aten::pointwise"}}
    assert not missing
