"""Numbers, tables and reasons as people read them."""

from __future__ import annotations

import pytest

from lightning_slimga.text import count, fraction, frozen_by_reason, markdown_table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.00 k"),
        (57_200, "57.2 k"),
        (572_000, "572 k"),
        (5_720_352, "5.72 M"),
        (4_089_184_256, "4.09 G"),
    ],
)
def test_count(number: int, text: str) -> None:
    assert count(number) == text


def test_markdown_table_escapes_bars() -> None:
    assert markdown_table(("a", "b"), [("x|y", "1")]) == (
        "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
    )


def test_fraction_of_nothing() -> None:
    assert fraction(0, 0) == "–"


def test_a_cause_met_at_several_places_is_one_reason() -> None:
    frozen = [("0", "window (op aten.convolution in 0)"), ("fc", "output"), ("0", "window")]
    assert frozen_by_reason([*frozen, ("1", "window (op aten.convolution in 1)")]) == [
        ("window", ["0", "1"]),
        ("output", ["fc"]),
    ]
