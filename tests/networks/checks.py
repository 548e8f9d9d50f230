"""What must hold for every network and every mask; the oracles are torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lightning_slimga import ChannelSurgery

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give scaling factors, shifts, biases and running statistics values that hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None or not tensor.is_floating_point() or not tensor.numel():
                    continue
                if tensor.dim() != 1 and tensor.amin() != tensor.amax():
                    continue  # a constant matrix is a scale, too
                values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
                if name in ("bias", "running_mean"):
                    values -= 1
                tensor.copy_(values)


def random_mask(
    surgery: ChannelSurgery, seed: int = 0, share: float = 0.5, least: int = 1
) -> Tensor:
    """Keep about ``share`` of the channels, at least ``least`` of every layer."""
    generator = np.random.Generator(np.random.PCG64(seed))
    keep = generator.random(surgery.num_channels) < share
    for layer in surgery.layers:
        missing = least - int(keep[layer.slice].sum())
        gone = layer.slice.start + np.flatnonzero(~keep[layer.slice])
        if missing > 0:
            keep[generator.permutation(gone)[:missing]] = True
    return torch.from_numpy(keep)


class Ops(TorchDispatchMode):
    """Remembers the ops that run: overload, arguments and result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ran.append((func, args, out))
        return out

    @property
    def names(self) -> list[str]:
        """Their names, without overloads."""
        return [func._schema.name for func, *_ in self.ran]


def run(model: nn.Module, example: Any) -> Any:
    """Call a model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an output, in order: containers and plain objects (dataclasses)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value))


def relative_error(wanted: Any, found: Any) -> float:
    """Largest difference of any output tensor, relative to its largest entry."""
    pairs = list(zip(tensors(wanted), tensors(found), strict=True))
    assert pairs, "the network returns no tensor"
    worst = 0.0
    for a, b in pairs:
        assert a.shape == b.shape
        if a.is_floating_point() and a.numel():
            assert torch.isfinite(a).all()
            scale = a.abs().max().clamp_min(1e-30)
            worst = max(worst, float((a - b).abs().max() / scale))
    return worst


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Identity, content, gradients, flags and plain attributes of a model."""
    held: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = tensor.grad
        held[name] = (id(tensor), tensor.detach().clone(), None if grad is None else grad.clone())
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, (int, float, str, bool, tuple)):
                held[f"{name}:{key}"] = value
    return held


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two snapshots agree bit for bit, the tensors being the same objects."""
    assert list(before) == list(after)
    for name, old in before.items():
        new = after[name]
        if not (isinstance(old, tuple) and len(old) == 3 and isinstance(old[1], Tensor)):
            assert old == new, name
            continue
        assert old[0] == new[0], f"{name} is another object"
        assert _equal(old[1], new[1]), name
        assert (old[2] is None) == (new[2] is None), name
        assert old[2] is None or _equal(old[2], new[2]), name


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def assert_exact(
    surgery: ChannelSurgery, example: Any, keep: Tensor, *, training: bool | None = False
) -> None:
    """Masked equals shrunk; MACs and parameters of the shrunk model are what the formula says."""
    model = surgery.model
    dtype = next(model.parameters()).dtype
    if training is not None:
        model.train(training)
    with torch.no_grad():
        with surgery.masked(keep):
            torch.manual_seed(1)
            wanted = run(model, example)
        with surgery.shrunk(keep):
            assert sum(p.numel() for p in model.parameters()) == surgery.params(keep)
            torch.manual_seed(1)
            found = run(model, example)
    assert relative_error(wanted, found) < RELATIVE[dtype]


def assert_macs_exact(surgery: ChannelSurgery, example: Any, keep: Tensor) -> None:
    """The formula agrees with torch's counter, which counts two FLOPs for one MAC."""
    surgery.model.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know that op
    try:
        with torch.no_grad(), surgery.shrunk(keep), FlopCounterMode(display=False) as counter:
            run(surgery.model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    assert 2 * surgery.macs(keep) == counter.get_total_flops(), counter.get_flop_counts()


def train_a_step(model: nn.Module, example: Any, optimizer: torch.optim.Optimizer) -> None:
    """One forward, backward and optimizer step in training mode; every parameter stays finite."""
    model.train()
    outputs = [t for t in tensors(run(model, example)) if t.requires_grad]
    assert outputs
    optimizer.zero_grad()
    sum(t.double().pow(2).mean() for t in outputs).backward()  # type: ignore[union-attr]
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
