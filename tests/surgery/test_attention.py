"""The attention that surgery leaves behind: torch's own results for any number of heads."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.surgery.attention import PrunedMultiheadAttention, opened
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.plan import PruningPlan
from tests.networks.checks import relative_error

WIDTH, HEADS, N, L, S = 12, 4, 2, 5, 6


@pytest.fixture(autouse=True)
def _slow_path_without_gradients() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        yield
    torch.backends.mha.set_fastpath_enabled(fused)


def masks(batched: bool, kinds: tuple[str | None, str | None]) -> dict[str, Any]:
    """An attention mask and a padding mask; no row of either hides all positions."""
    attention, padding = kinds
    heads = HEADS * (N if batched else 1)
    sets = {
        "boolean": torch.rand(L, S) > 0.7,
        "additive": torch.randn(L, S).double(),
        "by head": torch.rand(heads, L, S) > 0.7,
        "causal": torch.ones(L, S).bool().triu(1),
    }
    for name in ("boolean", "by head"):
        sets[name][..., 0] = False
    keys = {"boolean": torch.zeros(N, S).bool(), "additive": torch.randn(N, S).double()}
    keys["boolean"][:, -1] = True
    given = keys[padding] if padding else None
    return {
        "attn_mask": sets[attention] if attention else None,
        "key_padding_mask": given if given is None or batched else given[0],
        "is_causal": attention == "causal",
    }


MASKS = [
    (None, None), ("boolean", None), ("additive", None), ("by head", None), ("causal", None),
    (None, "boolean"), (None, "additive"), ("boolean", "boolean"), ("additive", "additive"),
    ("by head", "boolean"), ("causal", "boolean"),
]  # fmt: skip


@pytest.mark.parametrize("kinds", MASKS)
@pytest.mark.parametrize("form", ["first", "second", "none"])
def test_with_all_heads_it_computes_what_torch_computes(
    form: str, kinds: tuple[str | None, str | None]
) -> None:
    batched = form != "none"
    for bias, separate, weights, average, dropout in itertools.product(
        (True, False), (True, False), (True, False), (True, False), (0.0, 0.3)
    ):
        kdim, vdim = (7, 9) if separate else (WIDTH, WIDTH)
        module = nn.MultiheadAttention(
            WIDTH, HEADS, dropout, bias, kdim=kdim, vdim=vdim, batch_first=form == "first"
        ).double()
        inputs = [torch.randn(N, n, d).double() for n, d in ((L, WIDTH), (S, kdim), (S, vdim))]
        if form != "first":
            inputs = [x.transpose(0, 1) if batched else x[0] for x in inputs]
        options = masks(batched, kinds)
        options |= {"need_weights": weights, "average_attn_weights": average}
        torch.manual_seed(1)
        wanted = module(*inputs, **options)
        with opened([module]):
            assert type(module) is PrunedMultiheadAttention
            torch.manual_seed(1)
            found = module(*inputs, **options)
        assert type(module) is nn.MultiheadAttention
        assert relative_error(wanted, found) < 1e-12
        assert (found[1] is None) is not weights


def test_self_attention_by_one_product_is_the_same() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS).double()
    x = torch.randn(L, N, WIDTH).double()
    wanted = module(x, x, x)
    with opened([module]):
        assert relative_error(wanted, module(x, x, x)) < 1e-12
        assert relative_error(wanted, module(x, x.clone(), x)) < 1e-12


class Mixer(nn.Module):
    """Attention as users write it: the weights are asked for and dropped."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        mixed, _ = self.attention(x, x, x, **options)
        return x + mixed


def pruned(kept: tuple[int, ...] = (0, 2), **options: Any) -> tuple[Mixer, Mixer, PruningPlan]:
    """A full network, the same one with some of its heads, and the plan of that."""
    full = Mixer(**options).double()
    small = copy.deepcopy(full)
    surgery = ChannelSurgery(small, torch.randn(N, L, WIDTH).double())
    assert [(layer.name, layer.num_channels) for layer in surgery.layers] == [("attention", HEADS)]
    keep = torch.zeros(HEADS, dtype=torch.bool)
    keep[list(kept)] = True
    return full, small, surgery.apply(keep)


def test_heads_that_stay_are_those_of_torch() -> None:
    full, small, _ = pruned()
    attention = small.attention
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (2, 3, WIDTH)
    assert attention.in_proj_weight.shape == (3 * 2 * 3, WIDTH)
    assert (attention.out_proj.in_features, attention.out_proj.out_features) == (6, WIDTH)
    x = torch.randn(N, L, WIDTH).double()
    _, wanted = full.attention(x, x, x, average_attn_weights=False)
    _, found = attention(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(found, wanted[:, [0, 2]])
    _, mean = attention(x, x, x)
    torch.testing.assert_close(mean, wanted[:, [0, 2]].mean(1))


def test_a_mask_for_the_old_number_of_heads_is_refused() -> None:
    _, small, _ = pruned()
    x = torch.randn(N, L, WIDTH).double()
    mask = torch.zeros(N * HEADS, L, L).double()
    with pytest.raises(ValueError, match=r"`attn_mask` .*\(2 \* 2, L, S\).*2 heads.*got \[8, 5, 5"):
        small.attention(x, x, x, attn_mask=mask)
    with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
        small.attention(x, x, x, is_causal=True)
    with pytest.raises(TypeError, match=r"boolean or floating-point, but got torch\.int64"):
        small.attention(x, x, x, attn_mask=torch.ones(L, L).long())


def test_a_small_network_is_rebuilt_from_plan_and_weights() -> None:
    full, small, plan = pruned()
    fresh = copy.deepcopy(full)
    PruningPlan.from_json(plan.to_json()).apply(fresh)
    fresh.load_state_dict(small.state_dict())
    assert list(small.state_dict()) == list(full.state_dict())
    x = torch.randn(N, L, WIDTH).double()
    wanted = small(x)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    copies = [
        fresh,
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert type(other.attention) is PrunedMultiheadAttention
        assert other.attention.embed_dim == WIDTH
        assert torch.equal(other(x), wanted)


def test_it_can_be_exported_and_compiled() -> None:
    _, small, _ = pruned()
    small.eval()
    x = torch.randn(N, L, WIDTH).double()
    wanted = small(x)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), wanted)
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_that_are_added_keep_the_heads(options: dict[str, bool]) -> None:
    model = Mixer(**options).double()
    x = torch.randn(N, L, WIDTH).double()
    surgery = ChannelSurgery(model, x)
    assert not surgery.layers
    assert type(model.attention) is nn.MultiheadAttention
    assert "note: whole heads of attention stay: it adds keys and values of" in str(surgery)


class Own(nn.MultiheadAttention):
    """A class of the user's."""


def test_a_class_or_forward_of_the_users_is_left_alone() -> None:
    model = Mixer().double()
    x = torch.randn(N, L, WIDTH).double()
    model.attention.__class__ = Own
    surgery = ChannelSurgery(model, x)
    assert not surgery.layers
    assert "whole heads of attention stay: Own is not torch's own class" in surgery.notes
    assert type(model.attention) is Own
    model.attention.__class__ = nn.MultiheadAttention
    model.attention.forward = lambda q, k, v: (q + v, None)
    surgery = ChannelSurgery(model, x)
    assert not surgery.layers
    assert "whole heads of attention stay: its forward has been replaced" in surgery.notes
    assert type(model.attention) is nn.MultiheadAttention


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kdim": 7, "vdim": 9}, {"batch_first": True}]
)
def test_what_is_left_can_be_scripted(options: dict[str, Any]) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    inputs = [
        torch.randn(N, N, width).double()
        for width in (WIDTH, options.get("kdim", WIDTH), options.get("vdim", WIDTH))
    ]
    example = dict(zip(("query", "key", "value"), inputs, strict=True), need_weights=False)
    surgery = ChannelSurgery(module, example)
    surgery.apply(torch.arange(surgery.num_channels) % 2 == 0)
    assert type(module) is PrunedMultiheadAttention
    scripted = torch.jit.script(module)
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[:, -1] = True
    by_head = torch.randn(N * module.num_heads, N, N).double()
    for given in ({}, {"key_padding_mask": hidden}, {"attn_mask": by_head}):
        for needed in (True, False):
            wanted = module(*inputs, need_weights=needed, **given)
            assert relative_error(wanted, scripted(*inputs, need_weights=needed, **given)) < 1e-12
