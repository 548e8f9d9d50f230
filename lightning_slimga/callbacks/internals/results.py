"""Logged metrics that stay where they are without a walk through all they hold at each `self.log`.

A small network on a GPU waits for Python, and this walk takes as long as the network itself.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)


class _SettledMetric(_ResultMetric):
    """A logged metric that moves to a device only from another one."""

    def to(self, *args: Any, **kwargs: Any) -> _ResultMetric:  # type: ignore[override]  # as there
        value = vars(self).get("value")  # a tensor, or the user's Metric once it was logged
        if value is not None and args == (value.device,):
            return self
        return super().to(*args, **kwargs)


class SettledResults(_ResultCollection):
    """Lightning's collection, which makes such metrics of its own."""

    def __setitem__(self, key: str, result: _ResultMetric) -> None:
        result.__class__ = _SettledMetric
        super().__setitem__(key, result)
