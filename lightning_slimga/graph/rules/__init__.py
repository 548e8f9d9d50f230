"""The op rules, one file per family; importing this package fills the registry.

- ``elementwise``, ``normalization``, ``reduction`` (also ops along one given dimension: sort, flip,
  cumsum), ``spatial`` (positions behind the channels are mixed: pooling, padding, upsampling).
- ``convolution``, ``matmul``, ``attention``: contractions, which cost MACs.
- ``reshaping`` (views), ``joining`` (cat, split, pad), ``indexing``, ``creation``.
"""

from lightning_slimga.graph.rules import (
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    joining,
    matmul,
    normalization,
    recurrent,
    reduction,
    reshaping,
    spatial,
)

__all__ = [
    "attention",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "joining",
    "matmul",
    "normalization",
    "recurrent",
    "reduction",
    "reshaping",
    "spatial",
]
