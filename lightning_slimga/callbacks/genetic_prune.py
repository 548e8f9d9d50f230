"""GeneticPruneCallback: when the search runs inside a fit; what it does is in ``pruning_run``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.budget import check_budget
from lightning_slimga.callbacks.finetune_rate import FinetuneRate, RatePolicy
from lightning_slimga.callbacks.internals import (
    OutOfTimeError,
    averaged_models,
    end_fit,
    install_checkpoint_hooks,
    refuse_unsupported_strategy,
    remove_checkpoint_hooks,
)
from lightning_slimga.callbacks.interruption import DeferredSignals
from lightning_slimga.callbacks.pruning_run import PruningRun
from lightning_slimga.callbacks.search_file import remove_search_file
from lightning_slimga.callbacks.settings import SearchSettings, expect, expect_whole
from lightning_slimga.checkpoint import (
    apply_plans,
    plans_of,
    read_plans,
    remember_plan,
    store_plans,
)
from lightning_slimga.optimizer_state import check_optimizers
from lightning_slimga.plan import PruningPlan


class GeneticPruneCallback(pl.Callback):
    """Search the best small network in the middle of a fit, cut it out, and let the fit go on.

    When `prune_epoch` epochs are complete, and before the first batch of the next, a genetic
    algorithm searches masks over the removable channels. Fitness is the module's own validation,
    run on the shrunk candidate without side effects. The winner is cut out of the LightningModule
    and its optimizers; training continues with what is left.

    The method follows patent CN111105035A and Wang et al., "Network pruning using sparse learning
    and genetic algorithm", Neurocomputing 404, 2020; encoding, operators and evaluation factor are
    not published there, those here are our own.

    Args:
        monitor: name of the metric that judges candidates, exactly as logged in validation.
        mode: whether `monitor` is to be as large ("max") or as small ("min") as possible.
        budget: what the network may cost: {"macs": 0.5} (a float in (0, 1] is a fraction of the
            full network), {"params": 200000} (a number above 1 is absolute; MACs are per sample),
            or several at once.
        prune_epoch: complete epochs before the search, at least 1 and below `max_epochs`.
        population_size: individuals per generation, at least 2.
        generations: generations, the first one (with the seeds) included.
        max_evaluations: upper bound of validations, or None.
        max_time: upper bound of the search in seconds, or None.
        patience: generations without progress after which the search ends, or None.
        fitness_batches: validation batches per candidate, as a number or as a fraction; None uses
            what the Trainer uses. The winner is chosen on all of them.
        recalibration_batches: training batches on which a candidate's batch-norm statistics are
            taken anew; 0 leaves the old ones.
        racing: stop candidates that are clearly behind after a part of the validation batches
            (see :mod:`lightning_slimga.search.racing`). The batches come in a random order.
        min_channels: fewest channels that a layer keeps.
        round_to: layers keep a multiple of so many channels (hardware likes 8), or all.
        ignore: name patterns of modules that keep their channels ("head.*").
        only_scaled: leave layers without a scaling factor γ alone.
        allow_approximate: also remove channels under LayerNorm, which changes what remains.
        evaluation_factor: let the search learn which channels good networks keep.
        reset_monitors: start "best" of ModelCheckpoint and EarlyStopping, and reduce-on-plateau
            schedules, anew after surgery: scores of the dense network no longer count.
        finetune_lr: learning rate after surgery: "keep" what the schedule says; "rewarm", rising to
            that within the first epoch; or "restart" the schedule, which is run a second time.
        seed: seed of the search; the fit's own random numbers are not touched.
        report: write tables and plots to a folder beside the run's logs.

    Attributes:
        plan: the PruningPlan that was applied, or None.
        history: the generations, plain data.
        timings: seconds by part of the search.
    """

    def __init__(
        self,
        monitor: str,
        *,
        mode: Literal["min", "max"],
        budget: dict[str, int | float],
        prune_epoch: int,
        population_size: int = 24,
        generations: int = 9,
        max_evaluations: int | None = None,
        max_time: float | None = None,
        patience: int | None = None,
        fitness_batches: int | float | None = None,
        recalibration_batches: int = 4,
        racing: bool = True,
        min_channels: int = 1,
        round_to: int = 1,
        ignore: Sequence[str] = (),
        only_scaled: bool = False,
        allow_approximate: bool = False,
        evaluation_factor: bool = True,
        reset_monitors: bool = True,
        finetune_lr: RatePolicy = "keep",
        seed: int = 0,
        report: bool = True,
    ) -> None:
        super().__init__()
        expect_whole("prune_epoch", prune_epoch, 1)
        policies = get_args(RatePolicy)
        expect(finetune_lr in policies, "finetune_lr", f"one of {policies}", finetune_lr)
        self.monitor, self.mode, self.prune_epoch = monitor, mode, prune_epoch
        self.settings = SearchSettings(
            monitor=monitor,
            mode=mode,
            budget=check_budget(budget),
            population_size=population_size,
            generations=generations,
            max_evaluations=max_evaluations,
            max_time=max_time,
            patience=patience,
            fitness_batches=fitness_batches,
            recalibration_batches=recalibration_batches,
            racing=racing,
            min_channels=min_channels,
            round_to=round_to,
            ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
            only_scaled=only_scaled,
            allow_approximate=allow_approximate,
            evaluation_factor=evaluation_factor,
            reset_monitors=reset_monitors,
            seed=seed,
            report=report,
        )
        self.plan: PruningPlan | None = None
        self.history: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}
        self._rate = FinetuneRate(finetune_lr)
        self._finished = False
        self._search_state: dict[str, Any] | None = None
        self._run: PruningRun | None = None

    @property
    def state_key(self) -> str:
        """Fixed, so that checkpoints survive a change of arguments."""
        return "GeneticPruneCallback"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check what can be checked before the first epoch, and prepare for pruned checkpoints."""
        install_checkpoint_hooks(pl_module, on_load=self._shrink_first, on_save=self._add_plans)
        if stage != "fit":
            return
        refuse_unsupported_strategy(trainer)
        self._rate = FinetuneRate(self._rate.policy)
        if not any(plan is self.plan for plan in plans_of(pl_module)):
            self._finished, self.plan = False, None  # they are of another module's fit
        last, trial = trainer.max_epochs, trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trial and last is not None and last != -1 and self.prune_epoch >= last:
            raise MisconfigurationException(
                f"Expected argument `prune_epoch` to be below `max_epochs={last}`, so that epochs"
                f" are left for fine-tuning, but got {self.prune_epoch}."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse optimizers whose state cannot follow the surgery."""
        if not self._finished:
            check_optimizers(trainer.optimizers)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the learning rates."""
        self._rate.start(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Search and cut before the first batch after `prune_epoch` epochs.

        The only moment at which the dense epoch's checkpoint is right and an interrupted search
        resumes exactly.
        """
        if not (batch_idx or self._finished or trainer.current_epoch < self.prune_epoch):
            try:
                self._prune(trainer, pl_module)
            except OutOfTimeError:
                end_fit(trainer)
        self._rate.before_batch(trainer, batch_idx)

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with DeferredSignals() as signals:
            run = PruningRun(trainer, pl_module, self.settings, self._search_state, signals)
            self._run = run
            try:
                run.execute()
                self._finished = True
            finally:
                self._take_over(run)
            if run.result.plan is not None:
                self._rate.after_surgery(trainer)
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if hasattr(callback, "on_surgery"):
                        callback.on_surgery(trainer, pl_module, run.result.plan)
                run.report()

    def _take_over(self, run: PruningRun) -> None:
        """Keep what a run leaves behind, whether it has come to its end or not.

        Once the network is small the plan belongs into every checkpoint, also when something
        (a callback's `on_surgery`, say) fails after the cut.
        """
        self._search_state, self._run = run.search_state, None
        if run.result.plan is not None:
            self.plan = run.result.plan
            remember_plan(run.module, run.result.plan)
            self._finished = True
        if self._finished:
            self._search_state = None
            self.history, self.timings = run.result.history, run.result.timings

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tidy up, and say so when the fit ended too early for a search."""
        if self._finished:
            remove_search_file(trainer)
        elif self._search_state is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"The fit ended after {trainer.current_epoch} epochs, before `prune_epoch="
                f"{self.prune_epoch}`: nothing was pruned. `Trainer(min_epochs="
                f"{self.prune_epoch + 1})` keeps early stopping from ending it before."
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the optimizers as a checkpoint that is saved now should hold them."""
        self._rate.restore()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take our hooks off a module of full size; a pruned one can still be saved."""
        self._rate.stop()
        if not plans_of(pl_module):
            remove_checkpoint_hooks(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Plain data: whether the search is done, its history, and where it stands."""
        return {
            "finished": self._finished,
            "history": self.history,
            "timings": self.timings,
            "search": self._run.search_state if self._run else self._search_state,
            "rate": self._rate.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint stands."""
        self._finished = state_dict["finished"]
        self.history, self.timings = state_dict["history"], state_dict["timings"]
        self._search_state = state_dict["search"]
        self._rate.load_state_dict(state_dict["rate"])

    def _shrink_first(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring a full-size module to the checkpoint's size before its weights are loaded."""
        plans = read_plans(checkpoint)
        if plans:
            for model in (pl_module, *averaged_models(pl_module.trainer)):
                apply_plans(model, plans)
            self.plan = plans[-1]
            rank_zero_info(f"The checkpoint is pruned: {type(pl_module).__name__} was shrunk.")
        elif plans_of(pl_module):
            raise ValueError(
                f"The checkpoint is a full-size one, but this {type(pl_module).__name__} has been"
                " pruned. Load it into a freshly built module."
            )

    def _add_plans(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the plans in every checkpoint, also in one with weights only.

        In the middle of a search (a signal handler saves then) the module may hold a candidate's
        tensors: the checkpoint gets the full network's.
        """
        store_plans(checkpoint, pl_module)
        if self._run is not None:
            checkpoint["state_dict"] = self._run.full_state
