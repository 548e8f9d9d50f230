"""What the coverage benchmark does with one model: ours, and Torch-Pruning's way."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import zoo
from benchmarks.coverage_table import seconds
from benchmarks.zoo import Entry
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import random_mask, randomise, relative_error, tensors

LARGE = 100_000_000  # parameters from which values are compared in single precision
RUNS, SHORT = 3, 10.0  # runs of which the quickest counts, and seconds above which one is enough


def slimga(family: str, name: str) -> dict[str, Any]:
    """Time analysis and surgery as a user has them; then prove them right in double precision."""
    speed = _quickest(lambda: _speed(zoo.make(family, name)))
    return speed | _exactness(zoo.make(family, name))


def _quickest(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The quickest of a few runs, since whatever disturbs one adds to it; memory of the first."""
    runs = [measured()]
    while len(runs) < RUNS and seconds(runs[0]) < SHORT:
        runs.append(measured())
    return min(runs, key=seconds) | {"memory": runs[0]["memory"]}


def _speed(entry: Entry) -> dict[str, Any]:
    """Seconds and gigabytes of one analysis and one surgery, in single precision."""
    model = entry.model
    randomise(model)
    _forward(entry)  # warm up, and what a forward pass alone needs
    base, started = _peak(), time.process_time()
    surgery = ChannelSurgery(model, entry.inputs, training_inputs=entry.training_inputs)
    analysis, memory = time.process_time() - started, _peak() - base
    keep = random_mask(surgery)
    started = time.process_time()
    surgery.apply(keep)
    apply = time.process_time() - started
    found = {"analysis": analysis, "apply": apply, "memory": memory}
    return found | {"layers_single": len(surgery.layers)}


def _exactness(entry: Entry) -> dict[str, Any]:
    """Compare masked and shrunk, count, cut for good, run again and train for a step."""
    model = entry.model
    result: dict[str, Any] = {"params": _count(model)}
    double = result["params"] <= LARGE
    if double:
        model.double()
        entry.inputs, entry.training_inputs = _double(entry.inputs), _double(entry.training_inputs)
    randomise(model)
    surgery = ChannelSurgery(model, entry.inputs, training_inputs=entry.training_inputs)
    keep = random_mask(surgery)
    result |= {"layers": len(surgery.layers), "left": surgery.params(keep) / result["params"]}
    result["reach"] = 1 - surgery.params(random_mask(surgery, share=0.0)) / result["params"]
    difference, macs = _compare(surgery, entry, keep)
    result |= {"difference": difference, "macs": macs == 2 * surgery.macs(keep)}
    result["exact"] = difference < (1e-9 if double else 1e-5)
    surgery.apply(keep)
    assert _count(model) == surgery.params(keep)
    _forward(entry)
    _train(entry)
    return result


def _compare(surgery: ChannelSurgery, entry: Entry, keep: Tensor) -> tuple[float, int]:
    model = surgery.model.eval().requires_grad_(False)  # hooks of the counter would look for grads
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know that op
    with torch.no_grad(), _captured(model, entry.heads) as heads:
        with surgery.masked(keep):
            wanted = [model(*entry.inputs), *heads]
        heads.clear()
        with surgery.shrunk(keep), FlopCounterMode(display=False) as counter:
            found = [model(*entry.inputs), *heads]
    model.requires_grad_(True)
    if entry.heads:
        wanted, found = wanted[1:], found[1:]
    return relative_error(wanted, found), counter.get_total_flops()


@contextmanager
def _captured(model: nn.Module, names: tuple[str, ...]) -> Iterator[list[Any]]:
    outputs: list[Any] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out: outputs.append(out))
        for name in names
    ]
    yield outputs
    for handle in handles:
        handle.remove()


def _train(entry: Entry) -> None:
    model = entry.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    outputs = [t for t in tensors(model(*entry.training_inputs)) if t.requires_grad]
    torch.stack([t.double().pow(2).mean() for t in outputs]).sum().backward()
    optimizer.step()


def torch_pruning(family: str, name: str) -> dict[str, Any]:
    """Torch-Pruning's own dependency graph and its pruning of half of all channels."""
    return _quickest(lambda: _pruned(zoo.make(family, name)))


def _pruned(entry: Entry) -> dict[str, Any]:
    import torch_pruning as peer

    model, (x,) = entry.model.eval(), entry.inputs
    params = _count(model)
    with torch.no_grad():
        model(x)
    base, started = _peak(), time.process_time()
    pruner = peer.pruner.BasePruner(
        model,
        x,
        importance=peer.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=[m for m in model.modules() if getattr(m, "out_features", 0) == 1000],
    )
    pruner.step()
    spent = time.process_time() - started
    with torch.no_grad():
        model(x)
    return {"left": _count(model) / params, "seconds": spent, "memory": _peak() - base}


def _forward(entry: Entry) -> None:
    with torch.no_grad():
        entry.model.eval()(*entry.inputs)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: v if k == "keypoints" else _double(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_double(v) for v in value)
    return value


WORK = {"slimga": slimga, "torch_pruning": torch_pruning}
