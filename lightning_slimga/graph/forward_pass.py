"""What is known while one forward pass is watched: whose labels are whose, and what it costs."""

from __future__ import annotations

from torch import Tensor

from lightning_slimga.graph.einsum import Einsums
from lightning_slimga.graph.labels import DimLabels, Labels
from lightning_slimga.graph.tensor_map import TensorMap
from lightning_slimga.graph.tensors import memory_of
from lightning_slimga.graph.trace import CostTerm, OpRecord, Trace


class ForwardPass:
    """One pass of a network; the tracer fills it, op by op, and rules ask it.

    Args:
        trace: what all passes have taught; grows.

    Attributes:
        costs: the cost terms of the ops so far.
        records: the ops so far.
        module: name of the module whose forward is running.
        einsums: tells whether the op runs for ``torch.einsum``.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.costs: list[CostTerm] = []
        self.records: list[OpRecord] = []
        self.module = ""
        self.einsums = Einsums()
        self._labels: TensorMap[Labels] = TensorMap()
        self._unread: TensorMap[list[tuple[DimLabels, str]]] = TensorMap()
        self._zeros: TensorMap[frozenset[int]] = TensorMap()
        self._soiled: set[int] = set()

    def label(self, tensor: Tensor, labels: Labels) -> None:
        """Remember the labels of a tensor, one entry per dimension."""
        self._labels[tensor] = labels

    def lookup(self, tensor: Tensor) -> Labels:
        """Labels of any tensor of the pass, which is read here."""
        for dim, why in self._unread.pop(tensor) or ():
            self.trace.store.freeze(dim, why)
        labels = self._labels.get(tensor)
        if labels is None:
            slot = self.trace.slot_of(tensor)
            if slot is None:
                return [None] * tensor.dim()
            labels = self._labels[tensor] = self.trace.labels_of_slot(slot.name)
        return labels

    def known(self, tensor: Tensor) -> Labels | None:
        """Labels that a tensor of the pass has so far; asking is not reading."""
        return self._labels.get(tensor)

    def held(self) -> list[Tensor]:
        """Tensors of the pass that somebody still holds, the network's own left out."""
        return [t for t in self._labels.alive() if self.trace.slot_of(t) is None]

    def zeros(self, tensor: Tensor) -> frozenset[int]:
        """Dimensions along which masking leaves zeros where channels go (``graph/zeros.py``)."""
        if self._soiled and memory_of(tensor) in self._soiled:
            return frozenset()
        known = self._zeros.get(tensor)
        if known is None:
            slot = self.trace.slot_of(tensor)
            known = frozenset()
            if slot is not None and slot.is_parameter:
                dims = enumerate(self.trace.labels_of_slot(slot.name))
                known = frozenset(d for d, labels in dims if labels is not None)
                known -= {d for name, d in self.trace.divisors if name == slot.name}
        return known

    def has_zeros(self, tensor: Tensor, dims: frozenset[int]) -> None:
        """Remember the dimensions along which masking leaves zeros where channels go."""
        self._zeros[tensor] = dims

    def soils(self, tensor: Tensor) -> None:
        """Forget all that is known of zeros in a tensor's memory: somebody has written into it."""
        self._soiled.add(memory_of(tensor))

    def freeze_if_read(self, tensor: Tensor, labels: DimLabels, why: str) -> None:
        """Freeze labels as soon as something reads a tensor that depends on all of them."""
        self._unread[tensor] = [*(self._unread.pop(tensor) or ()), (labels, why)]
