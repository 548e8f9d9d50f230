"""Recurrent layers as kernels have them; elsewhere torch takes them apart into other ops.

The rows of a gate stand below those of another: channel j of the hidden state has row j of every
gate, and column j of the weights that read the state. One number, ``hidden_size``, holds for all
layers and directions, so they lose the same channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_slimga.graph.labels import DimLabels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

_GATES = {0: 1, 1: 1, 2: 4, 3: 3}
"""Kind of a cell, as kernels number them, -> gates: RNN with ReLU or tanh, LSTM, GRU."""


def keep_sizes(op: Op, weight: Tensor) -> None:
    """Let surgery rewrite what a recurrent module keeps about its input, state and projection.

    Which dimension of which weight they count is told by the weight's name in it.

    Args:
        op: the running op.
        weight: a weight of a recurrent module, (gates · H, I), (gates · H, H or P) or (P, H).
    """
    slot = op.trace.slot_of(weight)
    labels = op.trace.labels_of_slot(slot.name) if slot is not None else []
    for module, name in slot.places if slot is not None else ():
        projected = getattr(op.trace.modules[module], "proj_size", 0)
        if name in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
            op.attribute(("input_size",), labels[1], weight)
        elif name.startswith("weight_hh"):
            op.attribute(("proj_size" if projected else "hidden_size",), labels[1], weight)
        elif name.startswith("weight_hr"):
            op.attribute(("proj_size",), labels[0], weight)
            op.attribute(("hidden_size",), labels[1], weight)


@rule("aten::mkldnn_rnn_layer")
def mkldnn_rnn_layer(op: Op, x: Tensor, *rest: Any) -> Any:
    """X (T, N, I), weights (G·H, I), (G·H, H), biases (G·H,), states (N, H) -> (T, N, H), states.

    One direction of one layer.
    """
    weights, (hx, cx), mode, biased = rest[:4], rest[4:6], int(rest[8]), bool(rest[11])
    time, batch, features = op.labels(x)
    op.freeze(time, "one step after the other")
    state, cell = op.labels(hx), op.labels(cx)
    batch = op.tie(op.tie(batch, state[0]), cell[0])
    given = weights if biased else weights[:2]
    for weight, zeros in zip(weights, weights[len(given) :], strict=False):
        for a, b in zip(op.labels(weight), op.labels(zeros), strict=True):
            op.tie(a, b)  # without biases: zeros of the size of the weights
    hidden, _ = _layer(op, features, given, _GATES[mode], state[1], cell[1])
    sizes = [(op.labels(w)[i], w.shape[i]) for w in weights[:2] for i in (0, 1)]
    for row, column in (sizes[:2], sizes[2:]):
        op.macs(x.shape[0], (batch, x.shape[1]), row, column)
    return ([None, batch, hidden], [batch, hidden], [batch, hidden])


@rule("aten::_cudnn_rnn", "aten::miopen_rnn")
def fused_rnn(op: Op, x: Tensor, weights: Sequence[Tensor], stride: int, *rest: Any) -> Any:
    """X (T, N, I) or packed (M, I), states (L·D, N, H or P) -> (T, N, D·H or D·P), states."""
    given = dict(zip((a.name for a in op.func._schema.arguments[3:]), rest, strict=True))
    hx, cx = given["hx"], given["cx"]
    state, cell = op.labels(hx), op.labels(cx) or [None] * 3
    op.freeze(state[0], "layers and directions")
    op.freeze(cell[0], "layers and directions")
    batch, labels = op.tie(state[1], cell[1]), op.labels(x)
    features = labels.pop()
    if x.dim() == 2:
        op.freeze(batch, "packed sequences")
    else:
        axis = 0 if given["batch_first"] else 1
        labels[axis] = batch = op.tie(labels[axis], batch)
    for axis, dim in enumerate(labels):
        if dim is not batch:
            op.freeze(dim, "one step after the other")
            labels[axis] = None
    outs: list[DimLabels] = []
    for first in range(0, len(weights), stride):
        gates, some = _GATES[int(given["mode"])], weights[first : first + stride]
        out, _ = _layer(op, features, some, gates, state[2], cell[2])
        outs.append(out)
        if len(outs) == (2 if given["bidirectional"] else 1):
            features, outs = _joined(op, outs, hx.shape[2]), []
    states: Any = ([None, batch, state[2]], [None, batch, cell[2]] if cx is not None else None)
    return ([*labels, features], *states)


@rule("aten::_thnn_fused_lstm_cell", "aten::_thnn_fused_gru_cell")
def fused_cell(op: Op, inputs: Tensor, hidden: Tensor, state: Tensor, *biases: Any) -> Any:
    """Gates (N, G·H) of the input and of the state, state (N, H) -> state, LSTM: twice (N, H)."""
    batch, rows = op.labels(inputs)
    batch, rows = op.tie(batch, op.labels(hidden)[0]), op.tie(rows, op.labels(hidden)[1])
    for bias in biases:
        if bias is not None:
            rows = op.tie(rows, op.labels(bias)[0])
    own = op.labels(state)
    channels = op.tie(_of_gates(op, rows, inputs.shape[1] // state.shape[1]), own[1])
    out = [op.tie(batch, own[0]), channels]
    return tuple(list(out) if t.shape == state.shape else None for t in op.outputs)


@rule("aten::_pack_padded_sequence")
def pack_padded_sequence(op: Op, x: Tensor, lengths: Tensor, _first: bool) -> Any:
    """X (T, N, C) or (N, T, C), lengths (N,) -> the steps of all sequences (M, C), their numbers.

    C may stand for several dimensions.
    """
    steps, batch, *channels = op.labels(x)
    for dim in (steps, batch, op.labels(lengths)[0]):
        op.freeze(dim, "packed sequences")
    return ([None, *channels], None)


def _layer(
    op: Op,
    features: DimLabels,
    weights: Sequence[Tensor],
    gates: int,
    state: DimLabels,
    cell: DimLabels,
) -> tuple[DimLabels, DimLabels]:
    """What one direction of one layer returns, and its cells; these differ by a projection."""
    projection = [w for w in weights[2:] if w.dim() == 2]
    (first, last), rows = weights[:2], op.labels(weights[0])[0]
    for weight in (*weights[:2], *projection):
        op.reads(weight)
        keep_sizes(op, weight)
    op.contract(features, op.labels(first)[1])
    op.contract(state, op.labels(last)[1])
    for other in (last, *(w for w in weights[2:] if w.dim() == 1)):
        rows = op.tie(rows, op.labels(other)[0])
    hidden = out = _of_gates(op, rows, gates)
    if projection:
        out, inner = op.labels(projection[0])
        op.contract(hidden, inner)
    op.tie(state, out)
    if cell is not None:
        op.tie(cell, hidden)
    return out, hidden


def _of_gates(op: Op, rows: DimLabels, gates: int) -> DimLabels:
    return None if rows is None else op.store.tie_rows(rows.reshape(gates, -1))


def _joined(op: Op, outs: list[DimLabels], size: int) -> DimLabels:
    """Both directions, one after the other."""
    joined = np.concatenate([op.full(out, size) for out in outs])
    return joined if (joined >= 0).any() else None
