"""GeneticPruneCallback: when the search runs inside a fit; what it does is in ``run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
from deap import base

from lightning_slimga.arguments import check_patterns, one_of
from lightning_slimga.callbacks.internals import (
    OutOfTimeError,
    end_fit,
    install_checkpoint_hooks,
    refuse_unsupported_strategy,
    remove_checkpoint_hooks,
    require_validation,
)
from lightning_slimga.callbacks.prune.copies import Copies
from lightning_slimga.callbacks.prune.deferred_signals import DeferredSignals
from lightning_slimga.callbacks.prune.finetune_rate import FinetuneRate, RatePolicy
from lightning_slimga.callbacks.prune.rehearsal import rehearse
from lightning_slimga.callbacks.prune.rounds import Rounds
from lightning_slimga.callbacks.prune.run import PruningRun
from lightning_slimga.callbacks.prune.schedule import Schedule
from lightning_slimga.callbacks.prune.search_file import remove_search_file
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.search import Front
from lightning_slimga.surgery.checkpoint import plans_of, store_plans
from lightning_slimga.surgery.optimizer_state import check_optimizers
from lightning_slimga.surgery.plan import PruningPlan
from lightning_slimga.surgery.supported import check_kinds


class GeneticPruneCallback(pl.Callback):
    """Search the best small network in the middle of a fit, cut it out, and let the fit go on.

    When `prune_epoch` epochs are complete, and before the first batch of the next, a genetic
    algorithm searches masks over the removable channels. Fitness is the module's own validation,
    run on the shrunk candidate without side effects. The winner is cut out of the LightningModule
    and its optimizers; training continues with what is left. Callbacks and the LightningModule that
    have a method `on_surgery(trainer, pl_module, plan)` hear of it right after.

    The method follows patent CN111105035A and Wang et al., "Network pruning using sparse learning
    and genetic algorithm", Neurocomputing 404, 2020; encoding, operators and evaluation factor are
    not published there, those here are our own.

    >>> callback = GeneticPruneCallback("val_acc", mode="max", budget={"macs": 0.5}, prune_epoch=10)
    >>> callback
    GeneticPruneCallback('val_acc', mode='max', budget={'macs': 0.5}, prune_epoch=10): 0 of 1 done
    >>> callback.plan is None  # until it has cut the network, in `Trainer(callbacks=[callback])`
    True

    Args:
        monitor: name of the metric that judges candidates, exactly as logged in validation.
        mode: whether `monitor` is to be as large ("max") or as small ("min") as possible.
        budget: what the network may cost: {"macs": 0.5} (a float in (0, 1] is a fraction of the
            full network), {"params": 200000} (a number above 1 is absolute; MACs are per sample),
            {"latency_ms": 2.5} (of one sample on this device; see
            :mod:`lightning_slimga.cost.latency_model`), or several at once. Several
            rounds need a list of such mappings, one for each, that ask for less and less; fractions
            always refer to the network at the start of the fit.
        prune_epoch: complete epochs before the search, at least 1 and below `max_epochs`.
        prune_epochs: in place of `prune_epoch`: complete epochs before each of several rounds of
            search, surgery and fine-tuning, rising.
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
        pick: search the best metric at every cost up to the (first) budget, and cut out this point:
            "knee" (where the metric begins to fall steeply), an int (index, cheapest first), a
            float (the best within this share of the dense network's cost, in what the first budget
            names first) or a mapping such as {"macs": 0.5} (the best within this budget). The last
            two are for one round. None: the best network within the budget.
        max_drop: the smallest network whose metric on all validation data is at most so much worse
            (absolute) than that of the uncut network; in place of `pick`.
        front: path of the `front.json` of an earlier run, to `pick` from without a search.
        evaluation_factor: let the search learn which channels good networks keep.
        reset_monitors: start "best" of ModelCheckpoint and EarlyStopping, and reduce-on-plateau
            schedules, anew after surgery: scores of the dense network no longer count.
        finetune_lr: learning rate after surgery: "keep" what the schedule says; "rewarm", rising to
            that within the first epoch; or "restart" the schedule, which is run a second time.
        twins: copies that must lose what their originals lose, such as a mean teacher, a key
            encoder or an average of weights. "auto" finds them: modules that nobody trains, of the
            structure and about the weights of one that is trained, in the LightningModule or in a
            plain attribute of it or of a callback. A list of pairs [("student", "teacher")] names
            those in the module; False leaves all copies to themselves.
        prune_untrained: also let channels go that no trained parameter makes (a frozen backbone, a
            teacher, a network in a loss); otherwise they stay, and fractions in `budget` leave out
            what these networks cost.
        seed: seed of the search; the fit's own random numbers are not touched.
        report: write tables and plots to a folder beside the run's logs.
        toolbox: a DEAP toolbox whose `select`, `mate` or `mutate` take the place of ours; how they
            are called says :mod:`lightning_slimga.search.breeding`. Children of any operator are
            repaired to the budget. A resumed fit needs the same toolbox.
        example_calls: other ways in which the network is called than the steps show: a list of what
            one call each receives (a Tensor, a tuple of arguments, a dict of keyword arguments, or
            a :class:`~lightning_slimga.running.Call` of a part of it), or a function that takes the
            LightningModule and returns such a list. They run in evaluation mode, and their MACs do
            not count. A `predict_step` of yours is tried on validation batches without that.
        samples_per_batch: samples in a validation batch, by which MACs are divided; needed where a
            warning says so. None: they are counted.
    """

    def __init__(
        self,
        monitor: str,
        *,
        mode: Literal["min", "max"],
        budget: dict[str, int | float] | list[dict[str, int | float]],
        prune_epoch: int | None = None,
        prune_epochs: Sequence[int] | None = None,
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
        pick: Literal["knee"] | int | float | dict[str, int | float] | None = None,
        max_drop: float | None = None,
        front: str | Path | None = None,
        evaluation_factor: bool = True,
        reset_monitors: bool = True,
        finetune_lr: RatePolicy = "keep",
        twins: Literal["auto", False] | list[tuple[str, str]] = "auto",
        prune_untrained: bool = False,
        seed: int = 0,
        report: bool = True,
        toolbox: base.Toolbox | None = None,
        example_calls: Sequence[Any] | Callable[[pl.LightningModule], Sequence[Any]] | None = None,
        samples_per_batch: int | None = None,
    ) -> None:
        super().__init__()
        self._schedule = Schedule.of(prune_epoch, prune_epochs, budget)
        self._rounds = Rounds(self._schedule)
        self._rate = FinetuneRate(one_of(*get_args(RatePolicy)).check("finetune_lr", finetune_lr))
        self.settings = SearchSettings(
            monitor=monitor,
            mode=mode,
            budget=self._schedule.budgets[0],
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
            ignore=ignore,  # type: ignore[arg-type]  # the settings make plain data of it
            only_scaled=only_scaled,
            allow_approximate=allow_approximate,
            evaluation_factor=evaluation_factor,
            reset_monitors=reset_monitors,
            seed=seed,
            report=report,
            pick=pick,
            max_drop=max_drop,
            front=front,  # type: ignore[arg-type]
            toolbox=toolbox,
            twins=twins,  # type: ignore[arg-type]
            prune_untrained=prune_untrained,
            example_calls=example_calls,
            samples_per_batch=samples_per_batch,
        )
        self._copies = Copies(self.settings.twins, self.settings.ignore)
        self._schedule.check_choice(self.settings)
        self.monitor, self.mode, self.prune_epochs = monitor, mode, self._schedule.epochs
        self.prune_epoch = self.prune_epochs[0]
        self._front: Front | None = None
        self._search_state: dict[str, Any] | None = None
        self._run: PruningRun | None = None
        self._validated = self._rehearsed = False

    def __repr__(self) -> str:
        """Return what was asked for, where it is not the default, and how many rounds are done."""
        given = dict(vars(self.settings), **self._schedule.arguments, finetune_lr=self._rate.policy)
        parameters = inspect.signature(type(self).__init__).parameters.values()
        said = [
            f"{one.name}={given[one.name]!r}"
            for one in parameters
            if one.name in given and given[one.name] != one.default and one.name != "monitor"
        ]
        done = f"{self._rounds.done} of {len(self._schedule.epochs)} done"
        return f"{type(self).__name__}({', '.join([repr(self.monitor), *said])}): {done}"

    @property
    def front(self) -> Front | None:
        """What the last search with `pick` or `max_drop` has left to choose from, or None."""
        return self._front

    @property
    def plan(self) -> PruningPlan | None:
        """What rebuilds the small network from the full-size class; None as long as it is dense."""
        return self._rounds.plan

    @property
    def plans(self) -> list[PruningPlan]:
        """What each round of this fit has cut."""
        return list(self._rounds.plans)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The generations, plain data; with several rounds each tells its `round`."""
        return self._rounds.history

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by part of the search."""
        return self._rounds.timings

    @property
    def state_key(self) -> str:
        """Fixed, so that checkpoints survive a change of arguments."""
        return "GeneticPruneCallback"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check what can be checked before the first epoch, and prepare for pruned checkpoints."""
        if stage == "fit":
            refuse_unsupported_strategy(trainer)
            self._schedule.check(trainer)
            if self.settings.front is not None and trainer.is_global_zero:
                Front.load(self.settings.front)
            self._rate = FinetuneRate(self._rate.policy)
            self._validated = self._rehearsed = False
            if not self._rounds.belong_to(pl_module):
                self._rounds, self._front = Rounds(self._schedule), None
                self._copies = Copies(self.settings.twins, self.settings.ignore)
        install_checkpoint_hooks(pl_module, on_load=self._shrink, on_save=self._add_plans)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what can only fail later; what was restored says whether a search is to come."""
        if not self._rounds.finished:
            check_kinds(pl_module)
            check_optimizers(trainer.optimizers)
            require_validation(trainer, pl_module)
            check_patterns(pl_module, self.settings.ignore)
            self._copies.check(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the learning rates, and look ahead to the end of the steps."""
        self._rate.start(trainer)
        if not self._rounds.finished:
            self._schedule.warn_of_few_steps(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on it is known what a validation logs; also after the sanity check."""
        self._validated = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Search and cut before the first batch after so many epochs.

        The only moment at which the dense epoch's checkpoint is right and an interrupted search
        resumes exactly.
        """
        if batch_idx == 0 and not self._rounds.finished:
            self._copies.look(trainer)
        due = batch_idx == 0 and self._rounds.is_due(trainer.current_epoch)
        if self._validated and not self._rehearsed:
            self._rehearsed = True
            if not due and not self._rounds.finished and self._search_state is None:
                budgets = self._schedule.budgets[self._rounds.done :]
                dense = self._rounds.current.dense
                rehearse(trainer, pl_module, self.settings, budgets, dense)
        if due:
            try:
                self._prune(trainer, pl_module)
            except OutOfTimeError:
                end_fit(trainer)
        self._rate.before_batch(trainer, batch_idx)

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with DeferredSignals() as signals:
            run = PruningRun(
                trainer,
                pl_module,
                self.settings,
                self._rounds.current,
                self._search_state,
                signals,
                self._copies,
            )
            self._run, complete = run, False
            try:
                cut = run.execute()
                complete = True
            finally:
                self._take_over(run, complete=complete)
            if cut is not None:
                self._rate.after_surgery(trainer)
                for one in (*trainer.callbacks, pl_module):  # type: ignore[attr-defined]
                    if hasattr(one, "on_surgery"):
                        one.on_surgery(trainer, pl_module, run.result.plan)
                run.report(cut)

    def _take_over(self, run: PruningRun, *, complete: bool) -> None:
        self._front = run.result.front or self._front
        before = self._rounds.done
        self._rounds.take_over(run.module, run.result, complete=complete)
        ended = self._rounds.done > before
        self._search_state, self._run = None if ended else run.search_state, None

    def _shrink(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        plans = self._rounds.plans_for(pl_module, checkpoint)
        if plans:
            state = checkpoint.get("callbacks", {}).get(self.state_key, {})
            self._copies.shrink(pl_module.trainer, plans, state.get("twins", {}))
            self._rounds.shrink(pl_module, plans)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tidy up, and say so when the fit ended too early for a search."""
        if self._rounds.finished:
            remove_search_file(trainer)
        elif self._search_state is None:
            self._rounds.warn_of_early_end(trainer)

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
        """Plain data: which rounds are done, and where the search stands."""
        return {
            "rounds": self._rounds.state_dict(),
            "front": self._front and self._front.state_dict(),
            "search": self._run.search_state if self._run else self._search_state,
            "rate": self._rate.state_dict(),
            "twins": self._copies.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint stands."""
        self._rounds.load_state_dict(state_dict["rounds"])
        self._copies.load_state_dict(state_dict["twins"])
        front = state_dict["front"]
        self._front = front and Front.from_state_dict(front)
        self._search_state = state_dict["search"]
        self._rate.load_state_dict(state_dict["rate"])

    def _add_plans(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the plans in every checkpoint, also in one with weights only.

        In the middle of a search (a signal handler saves then) the module may hold a candidate's
        tensors: the checkpoint gets the full network's.
        """
        store_plans(checkpoint, pl_module)
        if self._run is not None:
            # `WeightAveraging` gives its own average the usual place.
            averaged = "current_model_state" in checkpoint
            checkpoint["current_model_state" if averaged else "state_dict"] = self._run.full_state
