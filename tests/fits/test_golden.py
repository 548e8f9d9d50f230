"""Three seeds of a search inside a fit, and of two without one, end as they did when frozen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fits.golden import FILE, RUNS, SEEDS

FROZEN = json.loads(FILE.read_text())


def close(value: Any) -> Any:
    """The same data; numbers may differ in the last digits."""
    if isinstance(value, dict):
        return {key: close(item) for key, item in value.items()}
    if isinstance(value, list):
        return [close(item) for item in value]
    return pytest.approx(value, rel=1e-9, nan_ok=True) if isinstance(value, float) else value


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RUNS)
def test_frozen_search(name: str, seed: int) -> None:
    assert RUNS[name](seed) == close(FROZEN[f"{name} {seed}"])
