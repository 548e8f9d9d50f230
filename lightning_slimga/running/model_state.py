"""Run a user's module any number of times and leave no trace of it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, dict, set, deque)
_DEPTH, _MANY = 3, 2**12  # containers in containers, as long as it is no data set
_PLAIN = {bool, int, float, str, tuple, type(None)}
# Of these a GPU says whether they differ without being waited for.
_COMPARABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool}


@contextmanager
def preserved(model: nn.Module, *, device: torch.device | None = None) -> Iterator[None]:
    """Restore a module's state on exit, also after an exception.

    Buffers come back in identity and content (batch-norm statistics, spectral-norm vectors),
    so do ``training`` flags, plain attributes, tensors held in plain attributes (the states of
    torchmetrics objects), the content of lists, deques, dicts and sets held by a module, also of
    those in others, gradients, and torch's random number generators. Parameters keep their
    identity; their *values* are not copied: see :func:`~.parameter_writes.unwritten`.

    Meanwhile ``SyncBatchNorm`` takes the statistics of this process alone: the others may run the
    module another number of times, or not at all.

    Args:
        model: the module whose state is kept.
        device: where the model lives, for its random number generator; ``None`` looks at the
            first parameter.
    """
    modules = list(model.modules())
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    snapshots = [_Snapshot(module) for module in modules]
    _leave_process_groups(modules)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for snapshot in snapshots:
                snapshot.restore()
            with torch.no_grad():
                _restore([pair for snapshot in snapshots for pair in snapshot.tensors])


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
    """The own state of one module, without its children's."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        tensors = [buffer for buffer in self.attributes["_buffers"].values() if buffer is not None]
        self.containers: list[tuple[Any, list[Any]]] = []
        for value in self.attributes.values():
            if type(value) in _PLAIN:
                continue
            if isinstance(value, _CONTAINERS):
                self._keep(value)
            elif isinstance(value, Tensor):
                tensors.append(value)
        self.tensors = [(t, t.detach().clone()) for t in tensors]
        parameters = self.attributes["_parameters"].values()
        self.gradients = [(p, p.grad) for p in parameters if p is not None]

    def _keep(self, container: Any, depth: int = _DEPTH) -> None:
        items = _items(container)
        self.containers.append((container, items))
        if depth and len(items) < _MANY:
            for item in items:
                held = item[1] if isinstance(container, dict) else item
                if isinstance(held, _CONTAINERS):
                    self._keep(held, depth - 1)

    def restore(self) -> None:
        self.module.__dict__.clear()
        self.module.__dict__.update(self.attributes)
        for container, items in self.containers:
            if not _holds(container, items):
                _refill(container, items)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


def _kind(container: Any) -> Any:
    """The built-in type whose methods are asked: those of a user's subclass may refuse, or act."""
    kinds = (OrderedDict, *_CONTAINERS)
    return next(kind for kind in kinds if isinstance(container, kind))


def _items(container: Any) -> list[Any]:
    kind = _kind(container)
    return list(kind.items(container) if isinstance(container, dict) else kind.__iter__(container))


def _holds(container: Any, items: list[Any]) -> bool:
    """Whether a container still holds these objects, in this order."""
    now = _items(container)
    if len(now) != len(items):
        return False
    if isinstance(container, dict):
        return all(a is c and b is d for (a, b), (c, d) in zip(now, items, strict=True))
    return all(a is b for a, b in zip(now, items, strict=True))


def _refill(container: Any, items: list[Any]) -> None:
    """Give a container back its former content, keeping its identity."""
    kind = _kind(container)
    kind.clear(container)
    if isinstance(container, dict):
        for key, value in items:
            kind.__setitem__(container, key, value)
    else:
        (kind.update if kind is set else kind.extend)(container, items)


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
