"""Logged metrics that stay where they are without a walk through all they hold at each `self.log`.

A small network on a GPU waits for Python, and this walk takes as long as the network itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection


class SettledResults(_ResultCollection):
    """Lightning's collection of logged metrics; each moves to a device only from another one."""

    def __setitem__(self, key: str, result: Any) -> None:
        result.to = partial(_moved, result, result.to)
        super().__setitem__(key, result)


def _moved(result: Any, move: Any, device: Any) -> Any:
    value = vars(result).get("value")  # a tensor, or the user's Metric once it was logged
    return result if value is not None and value.device == device else move(device)
