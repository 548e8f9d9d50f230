"""The one place of the package that touches Lightning's private API.

What the search needs of a running fit and what Lightning offers no public way to: validation
without side effects, the fit's own batches, the calls that its steps make, and what must be told
that the model has changed. Classes are taken from live objects, so that it also works under a
Trainer of the `pytorch_lightning` package.

- ``evaluation``: the user's validation as a function. ``results``: its logged metrics, made quick.
- ``batches``: the fit's own data. ``capture``: the calls that its steps make.
- ``quiet``: run parts of a Trainer so that nobody else notices.
- ``strategy``, ``agreement``: several processes, one network.
- ``checkpoint_hooks``, ``monitors``, ``timers``: who must be told, or asked.

All that is touched; a test keeps the table true, and the rest of the package free of such names.

``_combined_loader`` loops | batches, capture, evaluation | data are copied, not iterated twice
``_max_batches`` evaluation loop | batches, evaluation | batches that the Trainer would use
``_mode`` CombinedLoader | capture, evaluation | how several loaders are combined
``_iterator`` CombinedLoader, DataLoader | batches | a copy must not share it
``_on_before_batch_transfer`` module | batches, evaluation | hooks that a batch passes once
``_trainer_fn`` evaluation loop | evaluation | a second loop of the same kind
``_stage`` evaluation loop | evaluation | a second loop of the same kind
``_results`` evaluation loop | evaluation | metrics in mid-evaluation; reset after an error
``_last_val_dl_reload_epoch`` evaluation loop | evaluation | the second loop never reloads
``_forked_name`` results | evaluation | the name under which a metric is logged
``_data_source`` evaluation loop | evaluation | says why there is no validation
``_logger_connector`` Trainer | evaluation, quiet | metrics logged meanwhile go to another one
``_last_val_time`` Trainer | quiet | `val_check_interval` in seconds goes on undisturbed
``_ResultCollection`` class | results | logged metrics that do not move twice
``_ResultMetric`` class | results | logged metrics that do not move twice
``_build_kwargs`` loops | capture | the arguments of a step
``_build_step_args_from_hook_kwargs`` evaluation loop | capture | the arguments of a step
``_last_global_step_saved`` ModelCheckpoint | monitors | the save after surgery is not skipped
``_reset`` reduce-on-plateau | monitors | patience of the small network starts anew
``_start_method`` DDPStrategy | strategy | processes that cannot hand back a small network
``_ddp_params_and_buffers_to_ignore`` module | agreement | buffers that ranks do not share
``_can_stop_early`` fit loop | timers | `min_epochs` and `min_steps` go before
``_current_fx_name`` module | timers | as after a hook that has returned
"""

from __future__ import annotations

from lightning_slimga.callbacks.internals.agreement import (
    average_over_ranks,
    everywhere,
    require_agreement,
    share_buffers,
    share_calls,
    union_over_ranks,
)
from lightning_slimga.callbacks.internals.batches import FewSamples, training_batches
from lightning_slimga.callbacks.internals.capture import capture_calls, capture_predictions
from lightning_slimga.callbacks.internals.checkpoint_hooks import (
    install_checkpoint_hooks,
    own_state,
    remove_checkpoint_hooks,
)
from lightning_slimga.callbacks.internals.evaluation import FitnessEvaluator, require_validation
from lightning_slimga.callbacks.internals.monitors import averaged_models, reset_monitors
from lightning_slimga.callbacks.internals.strategy import (
    broadcast,
    rebuild_ddp,
    reduce_mean,
    refuse_unsupported_strategy,
)
from lightning_slimga.callbacks.internals.timers import OutOfTimeError, end_fit, require_time

__all__ = [
    "FewSamples",
    "FitnessEvaluator",
    "OutOfTimeError",
    "average_over_ranks",
    "averaged_models",
    "broadcast",
    "capture_calls",
    "capture_predictions",
    "end_fit",
    "everywhere",
    "install_checkpoint_hooks",
    "own_state",
    "rebuild_ddp",
    "reduce_mean",
    "refuse_unsupported_strategy",
    "remove_checkpoint_hooks",
    "require_agreement",
    "require_time",
    "require_validation",
    "reset_monitors",
    "share_buffers",
    "share_calls",
    "training_batches",
    "union_over_ranks",
]
