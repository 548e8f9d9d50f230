"""Fits in these tests measure the latency only briefly: nobody looks at the number."""

from __future__ import annotations

from functools import partial

import pytest

from lightning_slimga.callbacks.prune import announcer
from lightning_slimga.cost.latency import measure_latency


@pytest.fixture(autouse=True)
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = partial(measure_latency, min_run_time=1e-4)
    monkeypatch.setattr(announcer, "measure_latency", brief)
