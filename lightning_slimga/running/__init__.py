"""Run somebody's network and leave no trace of it.

- ``calls``: recorded calls of a module, and the few that stand for all.
- ``model_state``: what running a module may change, and how it comes back.
- ``plain_state``: what else a program holds within reach; ``containers``, ``generators`` are parts.
- ``candidate``: whether the network runs for this package, for whoever asks.
- ``recalibration``: statistics of batch norm, taken anew.
- ``torch_settings``: exact float32, no tuning of kernels, no compiled code, for a while.
- ``swapped``: attributes of anything, for a while.
- ``garbage``: Python's search for garbage, less often.
"""

from __future__ import annotations

from lightning_slimga.running.calls import Call

__all__ = ["Call"]
