"""Run a user's module any number of times and leave no trace of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga.running.candidate import as_candidate
from lightning_slimga.running.plain_state import PlainState

# Of these a GPU says whether they differ without being waited for.
_COMPARABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool}


@contextmanager
def preserved(
    model: nn.Module,
    *,
    device: torch.device | None = None,
    beside: Iterable[Any] = (),
    buffers: bool = True,
    together: bool = False,
) -> Iterator[None]:
    """Restore a module's state on exit, also after an exception.

    Buffers come back in identity and content (batch-norm statistics, spectral-norm vectors),
    so do ``training`` flags, plain attributes, tensors held in plain attributes (the states of
    torchmetrics objects), gradients, torch's random number generators, and what else is within
    reach of the module (see :mod:`~lightning_slimga.running.plain_state`): containers in
    containers, objects of the user's classes, generators. Parameters keep their identity; their
    *values* are not copied: see :func:`~.parameter_writes.unwritten`.

    Meanwhile ``SyncBatchNorm`` takes the statistics of this process alone, unless ``together``: the
    others may run the module another number of times, or not at all.

    Args:
        model: the module whose state is kept.
        device: where the model lives, for its random number generator; ``None`` looks at the
            first parameter.
        beside: other objects whose plain data are to be restored as well.
        buffers: whether the content of the module's buffers comes back, too.
        together: whether all processes run the module, and equally often.
    """
    modules = list(model.modules())
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    snapshots = [_Snapshot(module) for module in modules]
    plain = PlainState([*modules, *beside])
    tensors = {id(pair[0]): pair for pair in plain.tensors}
    tensors |= {id(pair[0]): pair for snapshot in snapshots for pair in snapshot.tensors}
    for buffer in model.buffers() if not buffers else ():
        tensors.pop(id(buffer), None)
    if not together:
        _leave_process_groups(modules)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            with as_candidate():
                yield
        finally:
            for snapshot in snapshots:
                snapshot.restore()
            plain.restore()
            with torch.no_grad():
                _restore(list(tensors.values()))


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers on exit, in identity and content, also after an exception.

    Less than :func:`preserved` does, and cheap enough for every candidate of a search: plain
    attributes and random numbers are not looked after.
    """
    registries = [m._buffers for m in model.modules() if m._buffers]
    before = [registry.copy() for registry in registries]
    buffers = {id(b): b for registry in before for b in registry.values() if b is not None}
    content = [(b, b.detach().clone()) for b in buffers.values() if not nn.parameter.is_lazy(b)]
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
        with torch.no_grad():
            _restore(content)


@contextmanager
def stirred(model: nn.Module) -> Iterator[None]:
    """Give parameters that are constant (zero-initialised γ, layer scales) random values.

    A branch that is multiplied by zero would hide every mistake in it. Restored bit for bit.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in model.parameters():
            data = parameter.data
            strided = data.layout is torch.strided
            if strided and data.is_floating_point() and _is_constant(data):
                saved.append((data, data.clone()))
                noise = torch.rand(data.shape, generator=generator) - 0.5
                data.add_(noise.to(data))
        yield
    finally:
        for data, content in saved:
            data.copy_(content)


def _leave_process_groups(modules: Sequence[nn.Module]) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for module in modules:
            if isinstance(module, nn.SyncBatchNorm):
                # `get_world_size` of a group that one is no member of is -1: nothing to wait for.
                module.process_group = torch.distributed.GroupMember.NON_GROUP_MEMBER


class _Snapshot:
    """Tensors and gradients of one module, of any size, without its children's."""

    def __init__(self, module: nn.Module) -> None:
        held = vars(module)
        found = [*held["_buffers"].values(), *held.values()]
        tensors = {id(value): value for value in found if isinstance(value, Tensor)}
        self.tensors = [(t, t.detach().clone()) for t in tensors.values()]
        self.gradients = [(p, p.grad) for p in held["_parameters"].values() if p is not None]

    def restore(self) -> None:
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


def _restore(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Give tensors back their former content; what has not changed is not written into."""
    whole = [(tensor, content) for tensor, content in pairs if tensor.shape == content.shape]
    for (tensor, content), changed in zip(whole, _changed(whole), strict=True):
        if changed:
            tensor.copy_(content)
    if len(whole) != len(pairs):
        raise RuntimeError("a tensor held by the module was resized in place by its forward")


def _changed(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Which tensors are not as their copies; a GPU is waited for once, not for every tensor."""
    answers = [_differs(tensor, content) for tensor, content in pairs]
    distant = [answer for answer in answers if isinstance(answer, Tensor)]
    together = (
        torch.stack([a.to(distant[0].device) for a in distant]) if distant else torch.empty(0)
    )
    known = iter(together.tolist())
    return [next(known) if isinstance(answer, Tensor) else answer for answer in answers]


def _differs(tensor: Tensor, content: Tensor) -> bool | Tensor:
    """Whether two tensors differ: of a GPU's what it will say, a tensor without dimensions."""
    if tensor.layout is not torch.strided:
        parts = list(zip(_parts(tensor), _parts(content), strict=True))
        return any(not torch.equal(mine, other) for mine, other in parts)
    if tensor.is_cuda and tensor.dtype in _COMPARABLE:
        return (tensor != content).any()
    return not torch.equal(tensor, content)


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a sparse one is made of: where its values are, and which."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def _is_constant(data: Tensor) -> bool:
    """Whether all entries are equal; a look at the first few settles most large tensors."""
    few = data[(slice(0, 2),) * data.dim()].flatten().tolist()
    return bool(few) and all(x == few[0] for x in few) and bool(data.amin() == data.amax())
