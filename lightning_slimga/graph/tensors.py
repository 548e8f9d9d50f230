"""Which tensors a module owns: every parameter and buffer, with all the places it stands in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer of a model.

    Attributes:
        name: its first qualified name, as in ``named_parameters``.
        places: every ``(module name, attribute)`` that holds this tensor; several when tied.
        is_parameter: whether it is a Parameter.
        tensor: the tensor itself.
        shape: its shape when it was found: of full size, whatever a surgery makes of the tensor.
    """

    name: str
    places: tuple[tuple[str, str], ...]
    is_parameter: bool
    tensor: Tensor
    shape: tuple[int, ...]


def find_slots(model: nn.Module) -> dict[str, Slot]:
    """List the tensors that ``model`` owns, tied ones once.

    Args:
        model: any module.

    Returns:
        Slots by name, in the order of ``named_parameters`` within each module.
    """
    places: dict[int, list[tuple[str, str]]] = {}
    found: dict[int, tuple[str, Tensor, bool]] = {}
    for module_name, attribute, tensor, is_parameter in _own_tensors(model):
        places.setdefault(id(tensor), []).append((module_name, attribute))
        name = f"{module_name}.{attribute}" if module_name else attribute
        found.setdefault(id(tensor), (name, tensor, is_parameter))
    return {
        name: Slot(name, tuple(places[key]), is_parameter, tensor, tuple(tensor.shape))
        for key, (name, tensor, is_parameter) in found.items()
    }


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its first qualified name: one walk instead of one for each look-up."""
    return dict(model.named_modules())


def tensor_at(modules: Mapping[str, nn.Module], place: tuple[str, str]) -> Tensor | None:
    """The parameter or buffer that is held at ``(module name, attribute)`` now, if any."""
    module = modules.get(place[0])
    if module is None:
        return None
    found = module._parameters.get(place[1])
    return module._buffers.get(place[1]) if found is None else found


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor, bool]]:
    for module_name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and not nn.parameter.is_lazy(parameter):
                yield module_name, attribute, parameter, True
        for attribute, buffer in module._buffers.items():
            if buffer is not None and not nn.parameter.is_lazy(buffer):
                yield module_name, attribute, buffer, False


def memory_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 if it has none that others could have in common."""
    if tensor.layout is not torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a subclass that wraps others has no memory of its own
        return 0
