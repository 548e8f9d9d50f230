"""What the user wants to keep: channels that stay although they could go."""

from __future__ import annotations

from collections.abc import Iterable
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
