"""Compare the masked with the shrunk network: their outputs, or what each of their ops returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.trace import OpRecord, tensors_in
from lightning_slimga.running.outputs import output_tensors
from lightning_slimga.surgery.masking import Mask, indices_of
from lightning_slimga.surgery.proof.lockstep import Pairing, asks_for_values

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_STEPS = {"aten::floor", "aten::ceil", "aten::round", "aten::trunc", "aten::frac", "aten::sign"}

DECISION = "decision"
"""Two passes part because an op decides by values that differ in the last digit only."""


def compare_outputs(wanted: Any, found: Any) -> str | None:
    """Compare the outputs of the masked and the shrunk network.

    Returns:
        None where they agree within the tolerance of their dtype, else what differs, in words.
    """
    pairs_wanted, pairs_found = list(output_tensors(wanted)), list(output_tensors(found))
    if len(pairs_wanted) != len(pairs_found):
        return "the output has another number of tensors"
    for (path, a), (_, b) in zip(pairs_wanted, pairs_found, strict=True):
        if a.shape != b.shape:
            return f"the output [{path}] has another shape"
        if a.is_floating_point() and a.numel():
            error = _relative_error(a, b)
            if error > _TOLERANCE.get(a.dtype, 1e-4):
                return f"the output [{path}] differs by {error:.1e}"
    return None


def _relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return float("inf")
    scale = a[finite].abs().max() if finite.any() else torch.tensor(0.0)
    difference = (a - b)[finite].abs().max() if finite.any() else torch.tensor(0.0)
    return float(difference / scale.clamp_min(1e-12))


class Digest(NamedTuple):
    """What is remembered of a tensor: a projection, and the scale of its rounding errors."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: float
    scale: float

    @classmethod
    def of(cls, tensor: Tensor) -> Digest:
        """Project on a fixed direction, so that exchanged entries are seen."""
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        flat = tensor.detach().reshape(-1).double().nan_to_num(posinf=1e300, neginf=-1e300)
        direction = torch.arange(flat.numel(), dtype=torch.float64, device=flat.device).cos()
        value, scale = flat @ direction, flat.norm() * direction.norm()
        return cls(tuple(tensor.shape), tensor.dtype, float(value), float(scale))

    def agrees(self, other: Digest) -> bool:
        """Whether both are the same, up to rounding."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        tolerance = _TOLERANCE.get(self.dtype, 1e-12) * max(self.scale, other.scale)
        return not abs(self.value - other.value) > tolerance


class Watch(TorchDispatchMode):
    """Remember a digest of all that the ops of a pass return, without the removed channels.

    Args:
        records: the ops of the full network.
        graph: the channels.
        keep: the mask.
        full: whether the network has its full shapes (and is masked).

    Attributes:
        digests: what was remembered, by position of the op among the records.
        asked: whether values were asked for while the ops were those of the full network.
    """

    def __init__(
        self, records: Sequence[OpRecord], graph: ChannelGraph, keep: Mask, *, full: bool
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.digests: dict[int, list[Digest]] = {}
        self._pairing = Pairing(records)
        self._live = graph.live(keep)
        self._full = full
        self.asked = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        record = self._pairing.step(func._schema.name)
        self.asked |= not self._pairing.parted and asks_for_values(func, args)
        if record is not None:
            self.digests[self._pairing.position] = self._digests(record, tensors_in(out))
        return out

    @property
    def parted(self) -> bool:
        """Whether the finished pass ran other ops than the full network."""
        return not self._pairing.complete

    def _digests(self, record: OpRecord, outputs: list[Tensor]) -> list[Digest]:
        if "empty" in record.name:  # whatever was in memory
            return []
        pairs = zip(outputs, record.outputs, strict=True)
        return [Digest.of(self._kept(t, labels) if self._full else t) for t, labels in pairs]

    def _kept(self, tensor: Tensor, labels: Labels) -> Tensor:
        for axis, dim in enumerate(labels):
            if dim is not None and len(dim) == tensor.shape[axis]:
                live = self._live[dim]
                if not live.all():
                    index = indices_of(live, tensor.device)
                    tensor = tensor.index_select(axis, index)
        return tensor


def first_difference(
    records: Sequence[OpRecord], wanted: Watch, found: Watch
) -> OpRecord | str | None:
    """Where two passes part.

    Returns:
        The op whose values differ; ``DECISION`` where an op turns equal values into different
        decisions (a sort, a comparison, a rounding); None where no op differs.
    """
    for position in sorted(wanted.digests.keys() & found.digests.keys()):
        record, both = records[position], (wanted.digests[position], found.digests[position])
        pairs = [(x, y) for x, y in zip(*both, strict=False) if not x.agrees(y)]
        if any(x.dtype.is_floating_point for x, _ in pairs) and record.name not in _STEPS:
            return record
        if pairs:
            return DECISION if record.reads_floats else record
    # The masked network has all sizes of the full one: it goes another way by values alone. The
    # shrunk one may do so because of a size, if no value was asked for.
    return DECISION if wanted.parted or (found.parted and found.asked) else None
