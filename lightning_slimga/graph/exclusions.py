"""What the user wants to keep: channels that stay although they could go."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

import numpy as np

from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.trace import Trace

_WIDTHS = (
    "out_channels",
    "out_features",
    "num_features",
    "num_channels",
    "normalized_shape.-1",
    "embedding_dim",
)


def matching(modules: Collection[str], pattern: str) -> set[str]:
    """The names that a pattern of `ignore` matches; a name stands for its submodules too.

    Raises:
        ValueError: when there is none.
    """
    chosen = {
        name for name in modules if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    }
    if not chosen:
        raise ValueError(
            f"Expected argument `ignore` to hold patterns of module names, but {pattern!r}"
            f" matches none of {', '.join(n for n in modules if n)[:500]}."
        )
    return chosen


def keep_matching(trace: Trace, patterns: Iterable[str]) -> None:
    """Freeze the channels that modules of some names make (not those that they read).

    Args:
        trace: a finished trace.
        patterns: ``fnmatch`` patterns of module names; a name stands for its submodules too.

    Raises:
        ValueError: when a pattern matches no module.
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
