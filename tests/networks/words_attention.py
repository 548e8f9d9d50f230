"""Words: torch's own attention, to itself or to another value, and its encoder layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.steps import Choices, Env, Step, divisor, flip, pick, width, word


@word(3, weight=3)
def multihead_attention(choices: Choices, x: Tensor, env: Env) -> Step:
    """Queries (N, L, C), or (L, N, C); keys and values of any width with the same batch."""
    first = flip(choices)
    batch = 0 if first else 1
    others = [i for i, t in enumerate(env) if t.dim() == 3 and t.shape[batch] == x.shape[batch]]
    memory = pick(choices, others[::-1])
    wide = env[memory].shape[-1]
    layer = nn.MultiheadAttention(
        x.shape[-1], divisor(choices, x.shape[-1]), bias=flip(choices), batch_first=first,
        kdim=wide, vdim=wide,
    )  # fmt: skip
    masked, weights, residual = flip(choices), flip(choices), flip(choices)

    def run(step: Step, x: Tensor, other: Tensor) -> Tensor:
        lengths = x.shape[1 - batch], other.shape[1 - batch]
        mask = torch.ones(lengths, device=x.device).bool().triu(1) if masked else None
        y, _ = step.layer(x, other, other, attn_mask=mask, need_weights=weights)
        return x + y if residual else y

    return Step("attention", run, [memory], layer=layer)


@word(3)
def encoder_layer(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[-1]
    layer = nn.TransformerEncoderLayer(
        c, divisor(choices, c), width(choices), 0.0, batch_first=True, norm_first=flip(choices)
    )
    return Step("encoder layer", lambda step, x: step.layer(x), layer=layer)
