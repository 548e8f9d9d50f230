"""WHICH channels live and die together: labels, tracing, op rules, cost. Torch and numpy only.

Whoever has an op of his own teaches it to the analysis with :func:`rule`, from his own code;
:class:`Op` is what such a rule works with. `examples/custom_op.py` runs.
"""

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

__all__ = ["Labels", "Op", "rule"]
