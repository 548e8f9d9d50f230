"""WHICH channels live and die together: labels, tracing, op rules, cost. Torch and numpy only.

- ``labels``: one integer per index of a dimension; ties and frozen labels.
- ``tracer``: watches a forward pass; ``forward_pass``: what is known meanwhile; ``trace``: what
  all passes have taught.
- ``op``, ``registry``, ``rules/``: how labels flow through each op; ``signature``: its schema.
- ``layers``: channels and prunable layers; ``cost``: MACs and parameters as formulas.
- ``exclusions``: what a user wants to keep (``ignore``).
- ``tensors``, ``tensor_map``: the tensors of a module; values by tensor.

Whoever has an op of his own teaches it to the analysis with :func:`rule`, from his own code;
:class:`Op` is what such a rule works with. `examples/custom_op.py` runs.
"""

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

__all__ = ["Labels", "Op", "rule"]
