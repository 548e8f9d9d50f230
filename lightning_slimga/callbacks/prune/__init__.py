"""GeneticPruneCallback, and the pruning that it starts between two batches of a fit.

- ``callback``: the hooks. ``settings``: its arguments, checked.
- ``rounds``: which prunings a fit has. ``run``: one of them, step by step.
- ``survey``: what must be known before a search. ``candidates``: measures masks.
- ``searches``: the search that the arguments ask for. ``front_choice``: picks from a front.
- ``latency_limit``: holds a limit in milliseconds, as measured.
- ``search_file``: keeps the state of a search on disk. ``deferred_signals``: signals that wait.
- ``finetune_rate``: the learning rate after surgery.
- ``announcer``: what people see of it.
"""

from __future__ import annotations

from lightning_slimga.callbacks.prune.callback import GeneticPruneCallback

__all__ = ["GeneticPruneCallback"]
