"""Tables made from measured numbers, put where the pages show them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

DOCS = Path(__file__).parent.parent / "docs"


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name:start -->`` and ``<!-- name:end -->`` of a page."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, rest = page.read_text(encoding="utf-8").split(start)
    _, after = rest.split(end)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def interval(values: Sequence[float], *, signed: bool = False, digits: int = 1) -> str:
    """Return ``mean ± half-width`` of the 95 % interval of the mean (Student's t)."""
    mean = format(statistics.mean(values), f"{'+' if signed else ''}.{digits}f")
    count = len(values)
    if count < 2:
        return mean
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5
    return f"{mean} ± {half:.{digits}f}"
