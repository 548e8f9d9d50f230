"""HOW: look at a network, mask it, shrink it for a while or for good, and load what is left.

- ``channel_surgery``: the object that users hold; most of the others are its parts.
- ``analysis``: runs the network under the tracer; ``proof``: tries what that has found.
- ``inspection``: what can go and what cannot, as text and as plain data.
- ``masks``, ``scores``: masks as users give them, and the widths they may leave; what each channel
  is worth by its weights.
- ``plan``, ``tensor_cut``, ``masking``: what a mask cuts, and zeroing or cutting it for a while.
- ``exchange``: gives a tensor object a smaller content, so that references to it stay good.
- ``transaction``, ``optimizer_state``: all or nothing, optimizers included.
- ``attention``: torch's attention in a form whose heads can go.
- ``checkpoint``: plans in checkpoints, and the way back.
- ``supported``: which kinds of models can be cut at all.
- ``channels_last``: the memory format in which a processor convolves quickest.
"""

from __future__ import annotations

from lightning_slimga.surgery.channel_surgery import ChannelSurgery, SurgeryError
from lightning_slimga.surgery.checkpoint import PrunableMixin, load_pruned
from lightning_slimga.surgery.plan import PruningPlan

__all__ = ["ChannelSurgery", "PrunableMixin", "PruningPlan", "SurgeryError", "load_pruned"]
