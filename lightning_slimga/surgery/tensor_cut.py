"""What stays of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_LARGE = 2**22  # numbers from which new memory is dearer than copying
_BLOCK = 2**18  # numbers that stay in the cache on the way from one dimension to the next


@dataclass(frozen=True)
class TensorCut:
    """What stays of one parameter or buffer.

    Attributes:
        places: ``(module name, attribute)`` of everything that holds the tensor.
        shape: the full shape.
        kept: for each dimension that shrinks, the kept indices in rising order.
    """

    places: tuple[tuple[str, str], ...]
    shape: tuple[int, ...]
    kept: Mapping[int, Tensor]

    @property
    def small_shape(self) -> tuple[int, ...]:
        """The shape after the cut."""
        return tuple(len(self.kept[d]) if d in self.kept else n for d, n in enumerate(self.shape))

    def take(self, tensor: Tensor) -> Tensor:
        """The kept part of a tensor of the full shape, in the same memory format."""
        if tensor.numel() >= _LARGE and tensor.is_contiguous() and set(self.kept) == {0, 1}:
            return self._taken_in_blocks(tensor)
        for dim, indices in self.kept.items():
            tensor_indices = indices.to(tensor.device)
            layout = _memory_format(tensor)
            tensor = tensor.index_select(dim, tensor_indices).contiguous(memory_format=layout)
        return tensor

    def _taken_in_blocks(self, tensor: Tensor) -> Tensor:
        """Both dimensions a few rows at a time: nothing of half the size is made in between."""
        rows, columns = (self.kept[dim].to(tensor.device) for dim in (0, 1))
        small = tensor.new_empty(self.small_shape)
        size = max(1, _BLOCK // tensor[0].numel())
        for some, place in zip(torch.split(rows, size), torch.split(small, size), strict=True):
            torch.index_select(tensor.index_select(0, some), 1, columns, out=place)
        return small


def on_device(cuts: Mapping[str, TensorCut], device: torch.device) -> dict[str, TensorCut]:
    """The same cuts, their indices on a device: sent in one go, because each is waited for."""
    indices = [kept for cut in cuts.values() for kept in cut.kept.values()]
    if not indices:
        return dict(cuts)
    sent = iter(torch.split(torch.cat(indices).to(device), [len(kept) for kept in indices]))
    return {
        name: replace(cut, kept={dim: next(sent) for dim in cut.kept}) for name, cut in cuts.items()
    }


def _memory_format(tensor: Tensor) -> torch.memory_format:
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if (
            tensor.dim() == rank
            and tensor.is_contiguous(memory_format=layout)
            and not tensor.is_contiguous()
        ):
            return layout
    return torch.contiguous_format
