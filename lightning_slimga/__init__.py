"""lightning-slimga: sparse training, genetic channel search, surgery and fine-tuning in one fit.

The public names live in the rooms below and are loaded when they are first asked for: whoever
works without a Trainer never imports Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_slimga.callbacks.prune import GeneticPruneCallback
    from lightning_slimga.callbacks.sparsity import SparsityCallback
    from lightning_slimga.running.candidate import is_candidate
    from lightning_slimga.surgery import (
        ChannelSurgery,
        PrunableMixin,
        PruningPlan,
        SurgeryError,
        load_pruned,
    )

__version__ = "0.1.0"

__all__ = [
    "ChannelSurgery",
    "GeneticPruneCallback",
    "PrunableMixin",
    "PruningPlan",
    "SparsityCallback",
    "SurgeryError",
    "is_candidate",
    "load_pruned",
]

_ROOMS = {
    "GeneticPruneCallback": "lightning_slimga.callbacks.prune",
    "SparsityCallback": "lightning_slimga.callbacks.sparsity",
    "is_candidate": "lightning_slimga.running.candidate",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_ROOMS.get(name, "lightning_slimga.surgery")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
