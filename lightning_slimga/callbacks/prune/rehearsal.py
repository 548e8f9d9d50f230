"""What a search would refuse, found out at the start of the fit instead of hours later."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_slimga.callbacks.internals.quiet import traceless
from lightning_slimga.callbacks.prune.copies import Copies
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.callbacks.prune.survey import Survey
from lightning_slimga.cost.budget import LATENCY

_BATCHES = 2  # of validation: as many as Lightning's sanity check


def rehearse(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    settings: SearchSettings,
    budgets: Sequence[Mapping[str, int | float]],
    dense: Mapping[str, float],
) -> None:
    """Do what precedes a search, on a batch or two, without a word and without a trace.

    The fit goes on, bit for bit, as if nothing had been. Limits on latency are not looked at: they
    need measurements. Every rank must make the call.

    Args:
        trainer: the Trainer, inside ``fit``, before a training batch.
        pl_module: its LightningModule.
        settings: the callback's arguments.
        budgets: those of the rounds to come.
        dense: costs that fractions of a budget refer to; those of the network now where missing.

    Raises:
        MisconfigurationException: what the search itself would raise: no such metric, nothing that
            can be removed, a budget out of reach, data that can be read only once.
    """
    trial = replace(
        settings,
        fitness_batches=_BATCHES,
        recalibration_batches=min(1, settings.recalibration_batches),
        racing=False,
        **dict.fromkeys(("pick", "max_drop", "front")),  # type: ignore[arg-type]
    )
    with traceless(trainer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Copies of its own: what is a copy now need not be one at the search.
            copies = Copies(settings.twins, settings.ignore)
            survey = Survey.of(trainer, pl_module, trial, copies)
            for budget in budgets:
                exact = {name: limit for name, limit in budget.items() if name != LATENCY}
                if exact:
                    replace(survey, settings=replace(trial, budget=exact)).space(dense)
        except MisconfigurationException:
            raise
        except Exception:
            if trainer.world_size > 1:  # the others wait for this process in the rehearsal
                raise
            return  # what goes wrong so early need not go wrong later; else the search will say it
