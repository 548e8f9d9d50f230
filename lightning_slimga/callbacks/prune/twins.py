"""Copies that training code keeps in step with a network: mean teachers, key encoders, averages.

A copy has the structure of a module that is trained, no optimizer trains it, and yet its weights
move. It must lose the channels that its original loses. What does not move is a reference, kept to
be compared with, or to teach: it stays as it is.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_slimga.callbacks.internals import averaged_models
from lightning_slimga.graph.twins import inside, structure
from lightning_slimga.surgery.optimizer_state import check_optimizers, optimizers_of

_DEPTH, _MANY = 4, 4096  # objects in objects, as long as it is no data set
_FOREIGN = (
    "torch.",
    "torchmetrics.",
    "lightning.",
    "lightning_fabric.",
    "lightning_slimga.",
    "pytorch_lightning.",
)
_LEAVES = (str, bytes, type, FunctionType, ModuleType, torch.optim.Optimizer, Tensor)


@dataclass(frozen=True)
class Follower:
    """What may be a copy, and of what.

    Attributes:
        student: name of the module that it is a copy of.
        module: the copy.
        where: what holds it, in words.
        averaged: whether torch's `AveragedModel` holds it, which may not have begun to average.
    """

    student: str
    module: nn.Module
    where: str
    averaged: bool

    @property
    def sums(self) -> list[float]:
        """What tells whether the weights move: their sum, and that of their squares."""
        found = torch.zeros(2, dtype=torch.float64)
        for parameter in self.module.parameters():
            data = parameter.detach().double()
            found += torch.stack([data.sum(), data.square().sum()]).cpu()
        return [float(value) for value in found]


def trained_parameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> set[str] | None:
    """Names of the parameters that some optimizer changes; None where no optimizer is known."""
    parameters = dict(pl_module.named_parameters())
    optimizers = [*check_optimizers(trainer.optimizers), *optimizers_of(parameters.values())]
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    return {n for n, p in parameters.items() if p.requires_grad and id(p) in held} or None


def followers_within(model: nn.Module, trained: Collection[str]) -> list[Follower]:
    """Find what may be copies, as parts of a model.

    Args:
        model: the LightningModule.
        trained: names of the parameters that are trained.

    Returns:
        Each once, `where` being its name; none is part of another.
    """
    students = _students(model, trained)
    busy = {name for names in students.values() for name, _ in names}
    found: list[Follower] = []
    for name, copy in _with_parameters(model):
        if name in busy or any(inside(name, one.where) for one in found):
            continue
        holder = model.get_submodule(name.rpartition(".")[0])
        student = _original(copy, students)
        if student is not None:
            found.append(Follower(student, copy, name, isinstance(holder, AveragedModel)))
    return found


def followers_outside(trainer: pl.Trainer, trained: Collection[str]) -> list[Follower]:
    """Find what may be copies in plain attributes, of the LightningModule or of a callback.

    Those of the whole module that callbacks keep are left to
    :func:`~lightning_slimga.callbacks.internals.monitors.averaged_models`.
    """
    model = trainer.lightning_module
    students = _students(model, trained)
    own = {id(t) for t in model.parameters()}
    known = [*model.modules(), *(m for one in averaged_models(trainer) for m in one.modules())]
    taken = {id(module) for module in known}
    found: list[Follower] = []
    for where, held in _held(trainer):
        if not isinstance(held, nn.Module):
            continue
        for name, copy in _with_parameters(held):
            if id(copy) in taken or any(id(p) in own for p in copy.parameters()):
                continue
            holder = held.get_submodule(name.rpartition(".")[0])
            student = _original(copy, students)
            if student is not None:
                taken |= {id(module) for module in copy.modules()}
                place = ".".join(filter(None, (where, name)))
                found.append(Follower(student, copy, place, isinstance(holder, AveragedModel)))
    return found


def loose_tensors(trainer: pl.Trainer) -> dict[str, str]:
    """Find containers of tensors that look like copies of parameters, which nobody can cut along.

    A callback or a LightningModule with an `on_surgery` of its own sees to them there.

    Returns:
        For each container, in words, the name of the module whose parameters it copies.
    """
    model = trainer.lightning_module
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[str, str] = {}
    for where, held in _held(trainer, without_hook=True):
        tensors = _tensors_of(held)
        if len(tensors) > 1 and not any(t.data_ptr() in own for t in tensors.values()):
            modules = (n for n, module in model.named_modules() if _copied(tensors, module))
            student = next(modules, None)
            if student is not None:
                found[where] = student
    return found


def _students(
    model: nn.Module, trained: Collection[str]
) -> dict[Hashable, list[tuple[str, nn.Module]]]:
    """The modules that are trained, by their structure."""
    students = defaultdict(list)
    for name, module in _with_parameters(model):
        if any(inside(one, name) for one in trained):
            students[structure(module)].append((name, module))
    return students


def _with_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if next(module.parameters(), None) is not None:
            yield name, module


def _original(
    copy: nn.Module, students: Mapping[Hashable, Sequence[tuple[str, nn.Module]]]
) -> str | None:
    """The name of what a module may be a copy of: of several, what its weights are most like."""
    found = [(_likeness(one, copy), name) for name, one in students.get(structure(copy), ())]
    return max(found, key=lambda one: one[0])[1] if found else None


def _likeness(one: nn.Module, other: nn.Module) -> float:
    """Correlation of the weights of two modules of one structure, in [-1, 1].

    Of tensors with two dimensions or more, each around its mean: all fresh norms are alike.
    """
    products = torch.zeros(3, dtype=torch.float64)
    for pair in zip(one.parameters(), other.parameters(), strict=True):
        if pair[0].dim() > 1:
            a, b = (_centred(p).to(pair[0].device) for p in pair)
            products += torch.stack([a @ b, a @ a, b @ b]).double().cpu()
    scale = float(products[1] * products[2]) ** 0.5
    return float(products[0]) / scale if scale > 0 else 0.0


def _centred(parameter: Tensor) -> Tensor:
    data = parameter.detach()
    flat = (torch.view_as_real(data) if data.is_complex() else data).flatten().float()
    return flat - flat.mean()


def _held(trainer: pl.Trainer, *, without_hook: bool = False) -> Iterator[tuple[str, Any]]:
    """What plain attributes hold: modules, containers and objects of the user's, with their places.

    Args:
        trainer: its LightningModule, all modules in it, and its callbacks are asked.
        without_hook: leave those out that have an `on_surgery`.
    """
    model = trainer.lightning_module
    holders: list[tuple[str, Any]] = []
    if not (without_hook and hasattr(model, "on_surgery")):
        holders += model.named_modules(prefix=type(model).__name__)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not (without_hook and hasattr(callback, "on_surgery")) and not _is_ours(callback):
            holders.append((type(callback).__name__, callback))
    seen: set[int] = set()
    for where, holder in holders:
        for name, value in vars(holder).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _walk(f"{where}.{name}", value, seen, _DEPTH)


def _walk(where: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if id(value) in seen or isinstance(value, _LEAVES):
        return
    seen.add(id(value))
    inner = [] if isinstance(value, nn.Module) else _items(value)
    yield where, value
    if depth and len(inner) < _MANY:
        for name, item in inner:
            yield from _walk(f"{where}.{name}", item, seen, depth - 1)


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What an object holds, by name or number; nothing of libraries' objects.

    Of tuples, which are records of what has been, the modules alone: such are hidden in them.
    """
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, tuple):
        return [(i, item) for i, item in enumerate(value) if isinstance(item, nn.Module)]
    if isinstance(value, (list, set, deque)):
        return list(enumerate(value))
    foreign = f"{type(value).__module__}.".startswith(_FOREIGN)
    attributes = {} if foreign else getattr(value, "__dict__", {})
    return list(attributes.items()) if isinstance(attributes, dict) else []


def _is_ours(callback: Any) -> bool:
    return type(callback).__module__.startswith("lightning_slimga.")


def _tensors_of(held: Any) -> dict[Any, Tensor]:
    """The tensors of a container that holds nothing else."""
    if not isinstance(held, (dict, list)):
        return {}
    items = dict(_items(held))
    return items if all(isinstance(item, Tensor) for item in items.values()) else {}


def _copied(tensors: Mapping[Any, Tensor], module: nn.Module) -> bool:
    """Whether tensors have the names, or else the order, and the shapes of a module's own."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if all(isinstance(name, str) for name in shapes):
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return all(name in own and own[name].shape == shape for name, shape in shapes.items())
    if max(map(len, shapes.values())) < 2:
        return False  # a few vectors of one length are no rare thing
    parameters = list(module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    return list(shapes.values()) in ([p.shape for p in parameters], [p.shape for p in trained])
