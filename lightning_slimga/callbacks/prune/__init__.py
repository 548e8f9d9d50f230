"""GeneticPruneCallback, and the pruning that it starts between two batches of a fit.

- ``callback``: the hooks. ``settings``: its arguments, checked. ``schedule``: those that say when.
- ``rounds``: how far a fit has come. ``run``: one pruning, step by step. ``result``: what is left.
- ``rehearsal``: what a search would refuse, known at the start of the fit.
- ``survey``: what must be known before a search. ``candidates``: measures masks.
- ``front_choice``: picks from a front. ``latency_limit``: holds a limit in milliseconds.
- ``search_file``: keeps the state of a search on disk. ``deferred_signals``: signals that wait.
- ``finetune_rate``: the learning rate after surgery.
- ``announcer``: what people see of it. ``report_folder``: where it is written to.
"""

from __future__ import annotations

from lightning_slimga.callbacks.prune.callback import GeneticPruneCallback

__all__ = ["GeneticPruneCallback"]
