"""What pulls scaling factors γ toward zero while a network trains; usable without a Trainer.

- ``penalties``: the penalties R(γ), with their gradients and proximal steps.
- ``scaling_factors``: finds the γ of a network.
- ``protected``: the largest γ of each layer, which no step carries to zero.
- ``coupling``: which γ belong to channels that live and die together.
"""

from __future__ import annotations

from lightning_slimga.sparsity.penalties import L1, L1Half, Penalty, Polarization, ProximalPenalty

__all__ = ["L1", "L1Half", "Penalty", "Polarization", "ProximalPenalty"]
