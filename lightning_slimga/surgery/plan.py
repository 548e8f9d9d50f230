"""PruningPlan: what surgery keeps, as plain data that rebuilds the small model anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga.graph.tensors import modules_of, tensor_at
from lightning_slimga.graph.twins import inside, moved
from lightning_slimga.surgery.attention import settle_attention
from lightning_slimga.surgery.exchange import exchanged, parameter_like
from lightning_slimga.surgery.optimizer_state import (
    check_optimizers,
    optimizers_of,
    replace_in_optimizers,
)
from lightning_slimga.surgery.tensor_cut import TensorCut, on_device
from lightning_slimga.surgery.transaction import Transaction
from lightning_slimga.text import count

_FORMAT = 1


@dataclass(frozen=True)
class PruningPlan:
    """The result of a surgery: kept indices per tensor and the numbers that modules keep.

    An ``nn.MultiheadAttention`` that is cut also changes its class (see ``attention.py``).

    Attributes:
        tensors: cuts by tensor name.
        attributes: ``(module name, attribute, old value, new value)``; ``normalized_shape.-1``
            is an entry of a tuple.
        summary: plain figures for people and reports (channels, MACs, parameters).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_slimga import ChannelSurgery
        >>> def full_size():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = ChannelSurgery(full_size(), torch.randn(1, 4)).plan(torch.arange(8) < 3)
        >>> plan
        PruningPlan(channels 8 -> 3, MACs 48 -> 18, parameters 58 -> 23)
        >>> small = full_size()
        >>> plan = PruningPlan.from_state_dict(plan.state_dict()).apply(small)
        >>> small[0]
        Linear(in_features=4, out_features=3, bias=True)
    """

    tensors: Mapping[str, TensorCut]
    attributes: tuple[tuple[str, str, int, int], ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = {"channels": "channels", "macs": "MACs", "params": "parameters"}
        told = [
            f"{word} {count(before)} -> {count(after)}"
            for name, word in names.items()
            for before, after in [self.summary.get(name, (0, 0))]
            if name in self.summary
        ]
        return f"PruningPlan({', '.join(told) or f'{len(self.tensors)} tensors'})"

    def apply(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()
    ) -> PruningPlan:
        """Shrink a full-size model in place; all or nothing.

        Args:
            model: a model of the same class and sizes that the plan was made for.
            optimizers: optimizers that hold its parameters; their state is cut along. Others that
                hold one are found and cut along, too.

        Returns:
            The plan itself.

        Raises:
            ValueError: when a tensor is missing or has another shape; the model is untouched.
        """
        optimizers = check_optimizers(optimizers)
        self.check(model)
        with Transaction() as transaction:
            self.cut(model, transaction, optimizers)
        return self

    def check(self, model: nn.Module) -> None:
        """Refuse a model that is not of the full size that the plan was made for.

        Raises:
            ValueError: naming the first tensor that does not fit.
        """
        modules = modules_of(model)
        for name, cut in self.tensors.items():
            tensor = tensor_at(modules, cut.places[0])
            found = None if tensor is None else tuple(tensor.shape)
            if found == cut.shape:
                continue
            hint = " The plan has been applied to it already." if found == cut.small_shape else ""
            raise ValueError(
                f"Expected argument `model` to have a tensor {name!r} of shape {cut.shape}, as the"
                f" network that the plan was made for, but got {found or 'no such tensor'}.{hint}"
            )

    def is_applied(self, model: nn.Module) -> bool:
        """Whether every tensor of ``model`` has the small shape already."""
        modules = modules_of(model)
        for cut in self.tensors.values():
            tensor = tensor_at(modules, cut.places[0])
            if tensor is None or tuple(tensor.shape) != cut.small_shape:
                return False
        return True

    def _pieces(self, model: nn.Module) -> dict[str, Tensor]:
        """What is kept of each tensor of a full-size model, by name: copies, without gradients."""
        modules = modules_of(model)
        whole = {
            name: tensor
            for name, cut in self.tensors.items()
            if (tensor := tensor_at(modules, cut.places[0])) is not None
        }
        device = next((tensor.device for tensor in whole.values()), torch.device("cpu"))
        # What is made in inference mode could never train again.
        with torch.inference_mode(False), torch.no_grad():
            cuts = on_device(self.tensors, device)
            return {name: cuts[name].take(tensor.detach()) for name, tensor in whole.items()}

    def cut(
        self,
        model: nn.Module,
        transaction: Transaction,
        optimizers: list[torch.optim.Optimizer] | None = None,
        *,
        for_good: bool = True,
    ) -> None:
        """Make the changes under a transaction of the caller's (see :meth:`apply`).

        Args:
            model: a model that :meth:`check` has passed.
            transaction: undoes all of it.
            optimizers: optimizers whose state is cut along.
            for_good: gradients and the state of every optimizer that holds a parameter are cut
                along, and tensors stay the same objects; otherwise small tensors stand in for them,
                without gradients.
        """
        replaced: dict[Tensor, tuple[Tensor, TensorCut]] = {}
        modules = modules_of(model)
        pieces = self._pieces(model)
        with torch.inference_mode(False), torch.no_grad():
            for name, cut in self.tensors.items():
                _put(modules, cut, pieces[name], transaction, replaced, for_good=for_good)
            places = dict.fromkeys(m for cut in self.tensors.values() for m, _ in cut.places)
            settle_attention(modules, places, transaction)
            for module_name, name, _, value in self.attributes:
                _set_number(modules[module_name], name, value, transaction)
            if for_good:
                everyone = [*(optimizers or ()), *optimizers_of(replaced)]
                replace_in_optimizers(everyone, replaced, transaction)

    def then(self, other: PruningPlan) -> PruningPlan:
        """One plan that does what this one and then another do.

        Args:
            other: a plan made for the network that this one has left.

        Returns:
            A plan for the network that this one was made for; its summary tells of the way from
            there to what `other` leaves.

        Raises:
            ValueError: when `other` was made for another network.
        """
        names = {cut.places[0]: name for name, cut in self.tensors.items()}
        tensors = dict(self.tensors)
        for name, cut in other.tensors.items():
            known = names.get(cut.places[0], name)
            tensors[known] = _composed(name, tensors[known], cut) if known in tensors else cut
        numbers = {(module, name): (old, new) for module, name, old, new in self.attributes}
        for module, name, old, new in other.attributes:
            first = numbers.get((module, name), (old,))[0]
            numbers[module, name] = first, new
        attributes = tuple((*place, *values) for place, values in numbers.items())
        return PruningPlan(tensors, attributes, _summary(self.summary, other.summary))

    def within(self, module: str) -> PruningPlan:
        """The part of the plan that concerns a sub-module, with names that start from there.

        It cuts a copy that somebody keeps of the sub-module: ``plan.within("net").apply(copy)``.

        Args:
            module: its name; ``""`` is the whole model.
        """
        tensors = {}
        for cut in self.tensors.values():
            places = tuple((moved(m, module, ""), a) for m, a in cut.places if inside(m, module))
            if places:
                name = ".".join(filter(None, places[0]))
                tensors[name] = replace(cut, places=places)
        attributes = tuple(
            (moved(row[0], module, ""), *row[1:])
            for row in self.attributes
            if inside(row[0], module)
        )
        return PruningPlan(tensors, attributes, self.summary if not module else {})

    def state_dict(self) -> dict[str, Any]:
        """The plan as plain data (``torch.load(weights_only=True)`` accepts it)."""
        return {
            "format": _FORMAT,
            "tensors": {
                name: {
                    "places": [list(place) for place in cut.places],
                    "shape": list(cut.shape),
                    "kept": {dim: indices.tolist() for dim, indices in cut.kept.items()},
                }
                for name, cut in self.tensors.items()
            },
            "attributes": [list(row) for row in self.attributes],
            "summary": self.summary,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PruningPlan:
        """Rebuild a plan from :meth:`state_dict`, also after a round trip through JSON.

        Raises:
            ValueError: when the data is not a plan of a format that this version reads.
        """
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            found = state.get("format") if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"Expected argument `state` to be the state_dict of a PruningPlan of format"
                f" {_FORMAT}, but got {found!r}."
            )
        tensors = {
            name: TensorCut(
                places=tuple((str(m), str(a)) for m, a in cut["places"]),
                shape=tuple(int(n) for n in cut["shape"]),
                kept={
                    int(dim): torch.tensor(indices, dtype=torch.long)
                    for dim, indices in cut["kept"].items()
                },
            )
            for name, cut in state["tensors"].items()
        }
        attributes = tuple((str(m), str(a), int(o), int(n)) for m, a, o, n in state["attributes"])
        return cls(tensors, attributes, dict(state["summary"]))

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.state_dict())

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Rebuild a plan from :meth:`to_json`."""
        return cls.from_state_dict(json.loads(text))

    def __str__(self) -> str:
        lines = [f"PruningPlan of {len(self.tensors)} tensors"]
        for name, value in self.summary.items():
            if isinstance(value, (list, tuple)) and len(value) == 2:
                lines.append(f"  {name}: {value[0]:,} -> {value[1]:,}")
        for name, cut in self.tensors.items():
            lines.append(f"  {name}: {cut.shape} -> {cut.small_shape}")
        return "\n".join(lines)


def _composed(name: str, first: TensorCut, second: TensorCut) -> TensorCut:
    if second.shape != first.small_shape:
        raise ValueError(
            f"Expected argument `other` to be made for what this plan leaves, where {name!r} has"
            f" shape {first.small_shape}, but got a plan for shape {second.shape}."
        )
    kept = {
        **first.kept,
        **{dim: first.kept[dim][i] if dim in first.kept else i for dim, i in second.kept.items()},
    }
    return TensorCut(first.places, first.shape, dict(sorted(kept.items())))


def _summary(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Before the first and after the last; what only one of them tells stays."""
    merged = {**first, **last}
    for name in first.keys() & last.keys():
        if isinstance(first[name], Mapping):
            merged[name] = _summary(first[name], last[name])
        elif isinstance(first[name], (list, tuple)):
            merged[name] = [first[name][0], last[name][1]]
    if "channels" in merged and "layers" in merged:  # a layer may be out of reach for the second
        merged["channels"] = [sum(sizes) for sizes in zip(*merged["layers"].values(), strict=True)]
    return merged


def _put(
    modules: Mapping[str, nn.Module],
    cut: TensorCut,
    new: Tensor,
    transaction: Transaction,
    replaced: dict[Tensor, tuple[Tensor, TensorCut]],
    *,
    for_good: bool,
) -> None:
    """Put what is kept of a tensor in all of its places."""
    old = tensor_at(modules, cut.places[0])
    assert old is not None
    if isinstance(old, nn.Parameter):
        new = parameter_like(old, new)
        if for_good and old.grad is not None:
            new.grad = cut.take(old.grad)
    stays = for_good and exchanged(old, new, transaction)
    if isinstance(old, nn.Parameter):
        replaced[old] = (old if stays else new, cut)
    for place, name in () if stays else cut.places:
        module = modules[place]
        registry = module._parameters if isinstance(old, nn.Parameter) else module._buffers
        transaction.set_item(registry, name, new)
        _put_in_lists(module, old, new, transaction)


def _put_in_lists(module: nn.Module, old: Tensor, new: Tensor, transaction: Transaction) -> None:
    """Lists in which a module keeps its own tensors, as recurrent ones do, get the new one too."""
    for held in module.__dict__.values():
        if type(held) is list:
            for position, item in enumerate(held):
                if item is old:
                    transaction.set_item(held, position, new)


def _set_number(module: nn.Module, name: str, value: int, transaction: Transaction) -> None:
    name, _, index = name.partition(".")
    if index:
        former = getattr(module, name)
        entries = list(former)
        entries[int(index)] = value
        kind = list if isinstance(former, list) else tuple
        transaction.set_attribute(module, name, kind(entries))
    else:
        transaction.set_attribute(module, name, value)
