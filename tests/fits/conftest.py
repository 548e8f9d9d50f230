"""Fits in these tests measure the latency only briefly, too."""

from __future__ import annotations

from tests.callbacks.conftest import brief_latency

__all__ = ["brief_latency"]
