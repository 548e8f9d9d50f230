"""Fits in these tests measure the latency only briefly: nobody looks at the number."""

from __future__ import annotations

from functools import partial

import pytest

from lightning_slimga.callbacks import announcing
from lightning_slimga.latency import measure_latency


@pytest.fixture(autouse=True)
def _brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = partial(measure_latency, min_run_time=1e-4)
    monkeypatch.setattr(announcing, "measure_latency", brief)
