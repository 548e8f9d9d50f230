"""The one place of the package that touches Lightning's private API.

What the search needs of a running fit and what Lightning offers no public way to: validation
without side effects, the fit's own batches, the calls that its steps make, and what must be told
that the model has changed. Classes are taken from live objects, so that it also works under a
Trainer of the `pytorch_lightning` package.
"""

from __future__ import annotations

from lightning_slimga.callbacks.internals.agreement import (
    average_over_ranks,
    require_agreement,
    share_buffers,
    share_calls,
    union_over_ranks,
)
from lightning_slimga.callbacks.internals.batches import training_batches
from lightning_slimga.callbacks.internals.capture import capture_calls
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
    "FitnessEvaluator",
    "OutOfTimeError",
    "average_over_ranks",
    "averaged_models",
    "broadcast",
    "capture_calls",
    "end_fit",
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
