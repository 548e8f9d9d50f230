"""What the user wants to keep: channels that stay although they could go."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

import numpy as np

from lightning_slimga.graph.labels import LabelArray
from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.trace import Trace

UNTRAINED = "nobody trains what makes it"
"""The reason of :func:`keep_untrained`."""

_WIDTHS = (
    "out_channels",
    "out_features",
    "num_features",
    "num_channels",
    "normalized_shape.-1",
    "embedding_dim",
)


def matching(names: Iterable[str], pattern: str) -> set[str]:
    """The module names that a pattern (``fnmatch``, case-sensitive) matches.

    A name stands for its submodules too. Compiled modules also go by the names that they had
    before, for which a pattern may have been written.
    """
    forms = (pattern, f"{pattern}.*")
    return {
        name
        for name in names
        if any(
            fnmatchcase(known, form)
            for known in (name, name.replace("_orig_mod.", ""))
            for form in forms
        )
    }


def keep_matching(trace: Trace, patterns: Iterable[str]) -> None:
    """Freeze the channels that modules of some names make (not those that they read).

    Args:
        trace: a finished trace.
        patterns: of module names, as :func:`matching` takes them.
    """
    for pattern in patterns:
        chosen = matching(trace.modules, pattern)
        why = f"ignored, by the pattern {pattern!r}"
        sized = set()
        for (module, attribute), size in trace.attributes.items():
            if module in chosen and attribute in _WIDTHS:
                trace.store.freeze(size.labels, why)
                sized.add(module)
        for name, labels in trace.slot_labels.items():
            homes = {place for place, _ in trace.slots[name].places}
            if homes & chosen and not homes & sized:
                trace.store.freeze_all(labels, why)


def keep_unscaled(trace: Trace, graph: ChannelGraph) -> None:
    """Freeze layers that have no scaling factor γ."""
    for layer in graph.layers:
        if layer.gamma is None:
            bits = graph.bit_of_label
            inside = (bits >= layer.slice.start) & (bits < layer.slice.stop)
            trace.store.freeze(np.flatnonzero(inside), "has no scaling factor γ")


def keep_untrained(trace: Trace, trained: Collection[str]) -> None:
    """Freeze channels that no trained parameter makes: nothing would recover from their loss.

    Args:
        trace: a finished trace, twins tied: these follow what is trained.
        trained: names of the parameters that are trained.
    """
    owners = {module for name in trained for module, _ in trace.slots[name].places}
    alive = np.zeros(len(trace.store), dtype=bool)
    for (module, attribute), size in trace.attributes.items():
        if module in owners and attribute in _WIDTHS:
            alive[trace.store.find(size.labels[size.labels >= 0])] = True
    others: list[LabelArray] = []
    for name in trace.slot_labels:
        for labels in _made(trace, name):
            if name in trained:
                alive[trace.store.find(labels)] = True
            else:
                others.append(labels)
    for labels in others:
        trace.store.freeze(labels[~alive[trace.store.find(labels)]], UNTRAINED)


def _made(trace: Trace, name: str) -> list[LabelArray]:
    """Labels of the channels that a tensor makes.

    Of a network's own parameter that is the same for all samples (position embeddings of shape
    (1, tokens, channels)) those of all dimensions: nobody sums over it.
    """
    dims = trace.slot_labels[name]
    home = dims[int(name in trace.summed_rows) :][:1]
    module = trace.slots[name].places[0][0]
    if home and home[0] is None and not any(owner == module for owner, _ in trace.attributes):
        home = dims
    return [labels for labels in home if labels is not None]


def untrained_modules(trace: Trace, graph: ChannelGraph, trained: Collection[str]) -> list[str]:
    """The outermost modules without a trained parameter that keep channels for that reason.

    Args:
        trace: the trace that :func:`keep_untrained` has frozen channels of.
        graph: its channels.
        trained: names of the parameters that are trained.
    """
    places = [place for name in trained for place, _ in trace.slots[name].places]
    busy = {part for place in places for part in _path(place)}
    found: dict[str, None] = {}
    for name, dim, _, why in graph.frozen:
        if why == UNTRAINED and graph.writes(name, dim):
            path = _path(trace.slots[name].places[0][0])
            outermost = (part for part in path if part not in busy)
            found.setdefault(next(outermost, name))
    return list(found)


def _path(module: str) -> list[str]:
    """The names of a module and of all around it, the outermost first."""
    parts = module.split(".") if module else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]
