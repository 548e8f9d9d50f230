"""Two modules of one structure whose channels live and die together: a network and its average."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import nn

from lightning_slimga.graph.trace import SizeAttribute, Trace

Pair = tuple[str, str]
"""Names of a module and of its twin."""


def structure(module: nn.Module) -> Hashable:
    """Names and shapes of all parameters of a module; equal for twins."""
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def inside(name: str, module: str) -> bool:
    """Whether a dotted name is that of a module (``""`` is the model) or of something in it."""
    return not module or name == module or name.startswith(f"{module}.")


def moved(name: str, source: str, target: str) -> str:
    """The name in ``target`` of what has this name in ``source``."""
    rest = name[len(source) :].lstrip(".")
    return ".".join(filter(None, (target, rest)))


def tie_twins(trace: Trace, pairs: Iterable[Pair]) -> None:
    """Make one channel of what are corresponding indices of corresponding tensors.

    What only one of the two has been seen doing holds for the other, too: a pass may have reached
    one of them alone.

    Args:
        trace: a finished trace.
        pairs: names of modules whose parameters have the same names and shapes.
    """
    for first, second in pairs:
        _tie_tensors(trace, first, second)
        for source, target in ((first, second), (second, first)):
            for (module, attribute), size in list(trace.attributes.items()):
                if inside(module, source):
                    place = moved(module, source, target), attribute
                    trace.attributes.setdefault(place, SizeAttribute(*place, size.labels))


def _tie_tensors(trace: Trace, first: str, second: str) -> None:
    slots = {place: slot for slot in trace.slots.values() for place in slot.places}
    kinds = (trace.scaling_factors, trace.contracted_buffers, trace.summed_rows)
    for (module, attribute), one in slots.items():
        other = slots.get((moved(module, first, second), attribute))
        if not inside(module, first) or other is None or other.shape != one.shape:
            continue
        names = {one.name, other.name}
        if len(names) == 1 or not names & trace.slot_labels.keys():
            continue
        pairs = zip(trace.labels_of_slot(one.name), trace.labels_of_slot(other.name), strict=True)
        for a, b in pairs:
            if a is not None and b is not None:
                trace.store.tie(a, b, "")
        for kind in kinds:
            if names & kind:
                kind |= names
        dims = {dim for name, dim in trace.divisors if name in names}
        trace.divisors |= {(name, dim) for name in names for dim in dims}
