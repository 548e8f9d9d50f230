"""SparsityCallback: a penalty on the scaling factors γ while the network trains.

- ``callback``: the hooks. ``settings``: its arguments, checked.
- ``pull``: adds the gradient, or takes the proximal step. ``strength``: λ, given or steered.
- ``logging``: what is told of it. ``advice``: a λ to try.
"""

from __future__ import annotations

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback

__all__ = ["SparsityCallback"]
