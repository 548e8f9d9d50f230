"""Pruned checkpoints: where the plan is kept in the file, and how to load it anywhere."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_slimga.surgery.plan import PruningPlan

PLANS_KEY = "lightning_slimga"
"""Key of a Lightning checkpoint under which the applied plans are kept, as plain data."""

_ATTRIBUTE = "_pruning_plans"

_Module = TypeVar("_Module", bound=nn.Module)


def plans_of(model: nn.Module) -> list[PruningPlan]:
    """The plans that have shrunk a module, oldest first; empty for one of full size."""
    return list(getattr(model, _ATTRIBUTE, ()))


def remember_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Let a module know the plan that has just shrunk it."""
    setattr(model, _ATTRIBUTE, [*plans_of(model), plan])


def store_plans(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Write the plans of a module into a checkpoint of it that is about to be saved."""
    plans = plans_of(model)
    if plans:
        checkpoint[PLANS_KEY] = {"plans": [plan.state_dict() for plan in plans]}


def read_plans(checkpoint: Mapping[str, Any]) -> list[PruningPlan]:
    """The plans that shrank a checkpoint's model, oldest first; empty for a full-size one."""
    stored = checkpoint.get(PLANS_KEY, {"plans": []})
    return [PruningPlan.from_state_dict(plan) for plan in stored["plans"]]


def composed(plans: Sequence[PruningPlan]) -> PruningPlan | None:
    """One plan that does what several do one after the other; None for none."""
    return reduce(PruningPlan.then, plans) if plans else None


def apply_plans(model: nn.Module, plans: list[PruningPlan]) -> None:
    """Bring a module to the size of a checkpoint.

    Plans that the module has been through already are left out, so loading twice is harmless.

    Raises:
        ValueError: when the module is not the network that the plans were made for.
    """
    done = len(plans)
    while done and not plans[done - 1].is_applied(model):
        done -= 1
    for plan in plans[done:]:
        plan.apply(model)
    setattr(model, _ATTRIBUTE, list(plans))


def load_pruned(
    cls: type[_Module],
    checkpoint_path: str | Path,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    weights_only: bool = True,
    **init_kwargs: Any,
) -> _Module:
    """Load a pruned (or full-size) Lightning checkpoint into the class that was trained.

    Args:
        cls: the full-size LightningModule class (or any ``nn.Module`` whose ``state_dict`` the
            checkpoint holds).
        checkpoint_path: a file written by Lightning after surgery.
        map_location: device for the tensors, as in ``torch.load``.
        strict: whether the keys must match exactly, as in ``load_state_dict``.
        weights_only: as in ``torch.load``; False only for trusted files whose hyper-parameters
            are Python objects.
        **init_kwargs: arguments of ``cls``; they win over the hyper-parameters saved in the file.

    Returns:
        The small model with its weights; call ``eval()`` on it before inference, as after
        ``load_from_checkpoint``.

    Raises:
        ValueError: when ``cls`` with these arguments is not the network that was pruned, or the
            file is no checkpoint.
    """
    checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=weights_only)
    _require_checkpoint(checkpoint, checkpoint_path)
    known = dict(checkpoint.get("hyper_parameters") or {})
    model = cls(**{**_accepted(cls, known), **init_kwargs})
    apply_plans(model, read_plans(checkpoint))
    hook = getattr(model, "on_load_checkpoint", None)
    if hook is not None:
        hook(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=strict)
    return model.to(map_location) if isinstance(map_location, (str, torch.device)) else model


class PrunableMixin:
    """Lets ``load_from_checkpoint`` of a LightningModule class load pruned checkpoints.

    To be named before the Lightning class: ``class Net(PrunableMixin, L.LightningModule)``.
    Full-size checkpoints load as ever.

    Example:
        >>> import lightning as L
        >>> class Net(PrunableMixin, L.LightningModule):
        ...     "As before; `Net.load_from_checkpoint` takes pruned checkpoints, too."
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Shrink the module to the checkpoint's size; Lightning loads the weights after it."""
        assert isinstance(self, nn.Module)
        plans = read_plans(checkpoint)
        if plans:
            apply_plans(self, plans)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]


def _accepted(cls: type[nn.Module], known: dict[str, Any]) -> dict[str, Any]:
    """Those saved hyper-parameters that the class takes as arguments."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}


def _require_checkpoint(checkpoint: Any, checkpoint_path: str | Path) -> None:
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise ValueError(
            f"Expected argument `checkpoint_path` to be a checkpoint of Lightning, which has a"
            f" 'state_dict' and the plan of the pruning, but got {_content(checkpoint)} in"
            f" {str(checkpoint_path)!r}. Weights alone do not tell what was cut: load them by"
            " `load_state_dict` into a network that `PruningPlan.apply` has shrunk."
        )


def _content(found: Any) -> str:
    """What a file holds that is no checkpoint, in words."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    keys = list(found)
    return ", ".join(map(repr, keys[:3])) + (f" and {len(keys) - 3} more" if keys[3:] else "")
