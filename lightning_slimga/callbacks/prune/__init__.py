"""GeneticPruneCallback, and the pruning that it starts between two batches of a fit.

- ``callback``: the hooks (the moment). ``settings``: its arguments, checked.
- ``schedule``: after which epochs, and under which budgets. ``rounds``: whether one is due, and
  what the earlier ones have cut. ``run``: one pruning, step by step. ``result``: what is left.
- ``rehearsal``: what a search would refuse, known at the start of the fit.
- ``survey``: what must be known before a search. ``candidates``: measures masks.
- ``twins``: finds copies that training keeps in step. ``copies``: what a fit knows of them.
- ``front_choice``: picks from a front. ``latency_limit``: holds a limit in milliseconds.
- ``search_file``: keeps the state of a search on disk. ``deferred_signals``: signals that wait.
- ``finetune_rate``: the learning rate after surgery.
- ``announcer``: what people see of it. ``report_folder``: where it is written to.
"""

from __future__ import annotations

from lightning_slimga.callbacks.prune.callback import GeneticPruneCallback

__all__ = ["GeneticPruneCallback"]
