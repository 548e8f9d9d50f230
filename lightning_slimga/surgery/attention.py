"""``nn.MultiheadAttention`` with fewer heads: torch's own code has no such thing, so it is here.

``F.multi_head_attention_forward`` computes the width of a head as ``embed_dim / num_heads``; when
heads go and the embedding stays, that is wrong. So a module that loses heads changes its class, as
``torch.nn.utils.parametrize`` does it: the same object and tensor names, another forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga.surgery.transaction import Transaction


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` of ``num_heads`` heads of width ``head_dim``, however many.

    Surgery makes it by changing the class of a module. It takes and returns what its parent does;
    where ``need_weights`` asks for the average over heads, it is that of the heads that are left.

    Attributes:
        num_heads: heads that are left, H.
        head_dim: width of a head, D.
        in_proj_weight: (3·H·D, embed_dim), or ``q_proj_weight`` (H·D, embed_dim),
            ``k_proj_weight`` (H·D, kdim), ``v_proj_weight`` (H·D, vdim); ``in_proj_bias`` (3·H·D,).
        out_proj: linear, (H·D) -> embed_dim.
    """

    # The code below keeps to what TorchScript can compile, as torch's own does.
    __jit_unused_properties__: ClassVar[list[str]] = ["embed_dim", "_qkv_same_embed_dim"]

    @property
    def embed_dim(self) -> int:
        """Width of the output."""
        return self.out_proj.out_features

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Whether torch's fused kernels may read the weights; where it decides so, it asks here."""
        width = self.num_heads * self.head_dim
        joint = self.in_proj_weight is not None and self.in_proj_weight.shape == (3 * width, width)
        return joint and self.embed_dim == width

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as the parent does.

        Args:
            query: (L, E), or batched (N, L, E) with ``batch_first``, else (L, N, E).
            key: the same with S positions of width ``kdim``.
            value: the same with S positions of width ``vdim``.
            key_padding_mask: (S,) or (N, S); True or -inf: not attended to.
            need_weights: also return the weights.
            attn_mask: (L, S) or (N·num_heads, L, S); True or -inf: not attended to.
            average_attn_weights: return the mean of the weights over heads, rather than all.
            is_causal: says that ``attn_mask`` is causal.

        Returns:
            The output, shaped as ``query``, and the weights: (N, L, S), or (N, num_heads, L, S)
            if not averaged, without N where there is no batch; None where not needed.

        Raises:
            RuntimeError: when ``is_causal`` comes without ``attn_mask``.
            ValueError: when ``attn_mask`` is made for another number of heads.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        q, k, v = self._by_head(q), self._by_head(k), self._by_head(v)
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(q, None if is_causal else attn_mask, key_padding_mask)
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            scores = scores if mask is None else scores + mask
            shares = F.dropout(scores.softmax(-1), self.dropout, self.training)
            mixed = shares @ v
            shares = shares.mean(1) if average_attn_weights else shares
            weights = shares if batched else shares.squeeze(0)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        output = F.linear(
            mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias
        )
        if batched:
            return output if self.batch_first else output.transpose(0, 1), weights
        return output.squeeze(0), weights

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, each (..., H·D)."""
        if self.in_proj_weight is None:
            q_weight, k_weight, v_weight = (
                self.q_proj_weight,
                self.k_proj_weight,
                self.v_proj_weight,
            )
        elif query is key and key is value:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            return q, k, v
        else:
            q_weight, k_weight, v_weight = self.in_proj_weight.chunk(3)
        if self.in_proj_bias is None:
            return F.linear(query, q_weight), F.linear(key, k_weight), F.linear(value, v_weight)
        q_bias, k_bias, v_bias = self.in_proj_bias.chunk(3)
        return (
            F.linear(query, q_weight, q_bias),
            F.linear(key, k_weight, k_bias),
            F.linear(value, v_weight, v_bias),
        )

    def _by_head(self, x: Tensor) -> Tensor:
        """Split (..., H·D) into heads and bring the batch to the front: (N, H, L, D)."""
        x = torch.unflatten(x, -1, [self.num_heads, self.head_dim])
        if x.dim() == 3:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.transpose(1, 2)

    def _mask(self, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores; broadcasts with (N, H, L, S)."""
        mask: Tensor | None = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            if mask.dim() == 3:
                if len(mask) != len(q) * self.num_heads:
                    raise ValueError(
                        f"Expected argument `attn_mask` to be of shape (L, S) or"
                        f" ({len(q)} * {self.num_heads}, L, S), for the {self.num_heads} heads"
                        f" that are left, but got {list(mask.shape)}."
                    )
                mask = torch.unflatten(mask, 0, [len(q), self.num_heads])
        if padding is not None:
            hidden = _additive(padding, q.dtype).view(-1, 1, 1, padding.shape[-1])
            mask = hidden if mask is None else mask + hidden
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise TypeError(f"Expected masks to be boolean or floating-point, but got {mask.dtype}.")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def why_whole(module: nn.MultiheadAttention) -> str | None:
    """Why the heads of an attention module cannot be told apart, in words; None where they can."""
    if isinstance(module, PrunedMultiheadAttention):
        return None
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__qualname__} is not torch's own class"
    if "forward" in vars(module):
        return "its forward has been replaced"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys and values of its own (add_bias_kv, add_zero_attn)"
    return None


def _can_be_opened(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention and why_whole(module) is None


@contextmanager
def opened(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let every ``nn.MultiheadAttention`` run the code in which heads can be told apart."""
    with Transaction() as transaction:
        try:
            for module in modules:
                if _can_be_opened(module):
                    transaction.set_attribute(module, "__class__", PrunedMultiheadAttention)
            yield
        finally:
            transaction.roll_back()


def settle_attention(
    modules: Mapping[str, nn.Module], names: Iterable[str], transaction: Transaction
) -> None:
    """Change the class of those ``nn.MultiheadAttention`` modules whose tensors are cut.

    A ``nn.TransformerEncoder`` above one of them no longer packs padded batches into nested
    tensors, which only torch's fused kernels read.

    Args:
        modules: the modules of the network by name.
        names: modules of which a tensor is cut.
        transaction: where the changes are made.
    """
    cut = set()
    for name in names:
        owner, _, last = name.rpartition(".")
        module = modules[owner if last == "out_proj" else name]
        if _can_be_opened(module):
            transaction.set_attribute(module, "__class__", PrunedMultiheadAttention)
            cut.add(module)
    if cut:
        for encoder in modules.values():
            if isinstance(encoder, nn.TransformerEncoder) and not cut.isdisjoint(encoder.modules()):
                transaction.set_attribute(encoder, "use_nested_tensor", False)
