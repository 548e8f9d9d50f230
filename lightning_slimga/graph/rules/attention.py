"""Fused attention: heads and batch pass, the width of a head stays (it sets the scale)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

_KERNELS = [
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
]


@rule(*_KERNELS)
def scaled_dot_product_attention(
    op: Op, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> Any:
    """Query (*B, H, L, E), key (*B, H, S, E), value (*B, H, S, V) -> (*B, H, L, V)."""
    lq, lk, lv = op.labels(query), op.labels(key), op.labels(value)
    for dims, why in (
        ((lq[-1], lk[-1], lv[-1]), "the width of a head sets the scale of attention"),
        ((lk[-2], lv[-2]), "normalised over this dimension"),
    ):
        for dim in dims:
            op.freeze(dim, why)
    leading = [op.tie(op.tie(a, b), c) for a, b, c in zip(lq[:-2], lk[:-2], lv[:-2], strict=True)]
    tokens = lq[-2]
    for mask in (t for t in rest if isinstance(t, Tensor)):
        joined = _masked(op, [*leading, tokens, None], mask)
        leading, tokens = joined[:-2], joined[-2]
    _count_macs(op, leading, query, key, value)
    sums = [  # log-sum-exp of each head, (*B, H, L) or longer; other outputs are random states
        [*leading, tokens if t.shape[-1] == query.shape[-2] else None]
        if t.dim() and t.shape[:-1] == query.shape[:-2]
        else None
        for t in op.outputs[1:]
    ]
    return ([*leading, tokens, None], *sums)


def _masked(op: Op, labels: Labels, mask: Tensor) -> Labels:
    """Tie an attention mask, broadcast against (*B, H, L, S), with the scores it is added to."""
    result = list(labels)
    own = op.labels(mask)
    for axis in range(-mask.dim(), 0):
        if mask.shape[axis] != 1:
            result[axis] = op.tie(result[axis], own[axis])
    return result


def _count_macs(op: Op, leading: Any, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Scores and weighted sum, as torch's counter has them; masked entries are counted too."""
    batch = [(dim, n) for dim, n in zip(leading, query.shape[:-2], strict=True)]
    positions = query.shape[-2] * key.shape[-2]
    op.macs(positions * (query.shape[-1] + value.shape[-1]), *batch)
