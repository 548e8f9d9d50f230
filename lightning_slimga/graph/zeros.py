"""Zeros: along which dimensions of a tensor masking leaves zeros in the place of what goes.

Masking zeroes parameters. Products and sums of zeros are zero, and so is what an op makes of them
that maps 0 to 0. A sum or a norm over such a dimension is that of what stays: masked and shrunk
agree, and nothing must be frozen. What no line of this file vouches for is taken to be no zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_slimga.graph.labels import DimLabels, Labels, LabelStore
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.signature import Signature
from lightning_slimga.graph.trace import tensors_in

Dims = frozenset[int]
"""Dimensions of a tensor, counted from 0."""

_NONE: Dims = frozenset()

_MOVES = """view _unsafe_view _reshape_alias permute transpose t unsqueeze squeeze expand repeat
select slice split split_with_sizes unsafe_split unsafe_split_with_sizes unbind clone detach alias
_to_copy index_select gather flip roll unfold"""
"""What shows the same numbers in other places."""

_ODD = """relu tanh neg abs sqrt square sin asin sinh atan erf expm1 log1p gelu silu elu celu selu
leaky_relu hardswish relu6 sign native_dropout renorm"""
"""What makes 0 of 0, number by number, and of its first argument alone."""

_REDUCTIONS = "sum nansum mean norm linalg_vector_norm amax amin prod"
"""What makes 0 of zeros."""


def follow(op: Op, outputs: Sequence[Labels]) -> None:
    """Remember of an op that has run where its results are zero; its labels are known."""
    name = op.name.removeprefix("aten::").rstrip("_")
    kept = [_NONE] * len(op.outputs)
    if any(op.zeros(t) for t in op.tensors):
        if name in _MAPPED:
            kept = [_moved(op, labels) for labels in outputs]
        elif name in _RULES:
            kept[0] = _RULES[name](op)
    for tensor in tensors_in([op.arguments[i] for i in Signature.of(op.func).written]):
        where = [i for i, out in enumerate(op.outputs) if out is tensor]
        if not where or not op.zeros(tensor) <= kept[where[0]]:
            op.soils(tensor)
    for tensor, dims, labels in zip(op.outputs, kept, outputs, strict=True):
        op.has_zeros(tensor, frozenset(d for d in dims if labels[d] is not None))


def _moved(op: Op, outputs: Labels) -> Dims:
    """Dimensions whose channels come from dimensions of the first argument that have zeros."""
    source = op.tensors[0]
    given, zeros = op.labels(source), op.zeros(source)
    inside = [dim for d, dim in enumerate(given) if dim is not None and d in zeros]
    others = [dim for d, dim in enumerate(given) if dim is not None and d not in zeros]
    return frozenset(
        d for d, dim in enumerate(outputs) if dim is not None and _of(op.store, dim, inside, others)
    )


def _of(
    store: LabelStore, labels: DimLabels, inside: Sequence[DimLabels], others: Sequence[DimLabels]
) -> bool:
    """Whether all of these channels stand in dimensions inside, and none in the others."""
    if not others and any(labels is dim for dim in inside):
        return True

    def roots(dims: Sequence[DimLabels]) -> set[int]:
        return {int(n) for dim in dims if dim is not None for n in store.find(dim[dim >= 0])}

    found = roots([labels])
    return found <= roots(inside) and not found & roots(others)


def _aligned(op: Op, tensor: Tensor) -> Dims:
    """Dimensions of the first result at which a broadcast operand has zeros."""
    shift = op.outputs[0].dim() - tensor.dim()
    return frozenset(d + shift for d in op.zeros(tensor))


def _sum(op: Op) -> Dims:
    """A + b, a - b: where both are zero."""
    both = [_aligned(op, t) if isinstance(t, Tensor) else _NONE for t in op.arguments[:2]]
    return both[0] & both[1]


def _copied(op: Op) -> Dims:
    """Where what is copied is zero."""
    return _aligned(op, op.arguments[1])


def _product(op: Op) -> Dims:
    """A · b: where one of them is zero."""
    return _NONE.union(*(_aligned(op, t) for t in op.tensors))


def _quotient(op: Op) -> Dims:
    """A / b: where a is zero."""
    return _aligned(op, op.tensors[0]) if op.tensors[0] is op.arguments[0] else _NONE


def _power(op: Op) -> Dims:
    """A ** n for a number n > 0: where a is zero."""
    base, exponent = op.arguments[:2]
    plain = isinstance(base, Tensor) and isinstance(exponent, (int, float)) and exponent > 0
    return op.zeros(base) if plain else _NONE


def _first(op: Op) -> Dims:
    return op.zeros(op.tensors[0])


def _mm(op: Op) -> Dims:
    """A (…, M, K), b (…, K, N) -> (…, M, N)."""
    return _of_matrices(op, *op.arguments[:2])


def _of_matrices(op: Op, a: Tensor, b: Tensor) -> Dims:
    """Rows of a, columns of b, batches of either."""
    rank = op.outputs[0].dim()
    batches = (op.zeros(a) | op.zeros(b)) & set(range(rank - 2))
    return batches | (op.zeros(a) & {rank - 2}) | (op.zeros(b) & {rank - 1})


def _mv(op: Op) -> Dims:
    """A (M, K), b (K,) -> (M,)."""
    return op.zeros(op.arguments[0]) & {0}


def _addmm(op: Op) -> Dims:
    """Bias, a, b -> a b + bias: where both are zero."""
    bias, a, b = op.arguments[:3]
    return _aligned(op, bias) & _of_matrices(op, a, b)


def _convolution(op: Op) -> Dims:
    """Channels of the result whose weights and bias are zero."""
    weight, bias = op.arguments[1:3]
    transposed, groups = bool(op.arguments[6]), int(op.arguments[8])
    if transposed and groups > 1:
        return _NONE
    plain = bias is None or 0 in op.zeros(bias)
    return frozenset({1} if plain and int(transposed) in op.zeros(weight) else ())


def _batch_norm(op: Op) -> Dims:
    """Channels whose scaling factor and shift are zero."""
    affine = [t for t in op.arguments[1:3] if t is not None]
    return frozenset({1} if len(affine) == 2 and all(op.zeros(t) for t in affine) else ())


def _weight_norm(op: Op) -> Dims:
    """V·g/|v|: where v is zero, or g."""
    v, g = op.arguments[:2]
    return op.zeros(v) | op.zeros(g)


def _embedding(op: Op) -> Dims:
    """The last dimension, if that of the table has zeros."""
    return frozenset({op.outputs[0].dim() - 1} if 1 in op.zeros(op.arguments[0]) else ())


def _grouped_mm(op: Op) -> Dims:
    """Columns of b without a bias."""
    plain = op.arguments[3] is None and 2 in op.zeros(op.arguments[1])
    return frozenset({1} if plain else ())


def _written(op: Op) -> Dims:
    """Into zeros zeros are written, along other dimensions than that of the index."""
    target, dim, *rest = op.arguments
    source = rest[1]
    if not isinstance(source, Tensor) or source.dim() != target.dim():
        return _NONE
    return (op.zeros(target) & op.zeros(source)) - {dim % target.dim()}


def _cat(op: Op) -> Dims:
    """Where all parts are zero."""
    parts = [t for t in op.tensors if t.dim() == op.outputs[0].dim()]
    return frozenset.intersection(*(op.zeros(t) for t in parts))


_MAPPED = {*_MOVES.split(), *_REDUCTIONS.split()}

_RULES: dict[str, Callable[[Op], Dims]] = {
    **dict.fromkeys(_ODD.split(), _first),
    **dict.fromkeys(("add", "sub", "lerp"), _sum),
    "copy": _copied,
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    **dict.fromkeys(("mm", "bmm"), _mm),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "mv": _mv,
    "convolution": _convolution,
    **dict.fromkeys(
        (
            "native_batch_norm",
            "cudnn_batch_norm",
            "miopen_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_with_update",
            "_batch_norm_no_update",
        ),
        _batch_norm,
    ),
    "_weight_norm_interface": _weight_norm,
    "embedding": _embedding,
    "cat": _cat,
    "_grouped_mm": _grouped_mm,
    **dict.fromkeys(("scatter_add", "index_add"), _written),
}
