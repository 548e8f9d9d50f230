"""The op rules, one file per family; importing this package fills the registry."""

from lightning_slimga.graph.rules import (
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    joining,
    matmul,
    normalization,
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
    "reduction",
    "reshaping",
    "spatial",
]
