"""Run somebody's network, and put back what that has changed (new statistics are asked for).

- ``calls``: recorded calls of a module; the few that stand for all, on how many samples.
- ``outputs``: the tensors in what a call returns.
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
