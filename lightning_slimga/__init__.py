"""lightning-slimga: sparse training, genetic channel search, surgery and fine-tuning in one fit."""

from lightning_slimga.callbacks.genetic_prune import GeneticPruneCallback
from lightning_slimga.callbacks.sparsity import SparsityCallback
from lightning_slimga.checkpoint import PrunableMixin, load_pruned
from lightning_slimga.plan import PruningPlan
from lightning_slimga.surgery import ChannelSurgery, SurgeryError

__version__ = "0.1.0"

__all__ = [
    "ChannelSurgery",
    "GeneticPruneCallback",
    "PrunableMixin",
    "PruningPlan",
    "SparsityCallback",
    "SurgeryError",
    "load_pruned",
]
