"""The table of op rules: every row, by family of ops."""

from __future__ import annotations

from tests.graph.rows.layers import CONTRACTIONS, NORMS
from tests.graph.rows.row import CHANNELS, Row
from tests.graph.rows.shapes import REDUCTIONS, SHAPES
from tests.graph.rows.spatial import SPATIAL
from tests.graph.rows.values import CREATION, ELEMENTWISE

__all__ = ["CHANNELS", "ROWS", "Row"]

ROWS = [*CONTRACTIONS, *NORMS, *ELEMENTWISE, *CREATION, *SHAPES, *REDUCTIONS, *SPATIAL]
