"""Whole heads of torch's own attention go, wherever it stands."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga.surgery.attention import PrunedMultiheadAttention
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    assert_same,
    random_mask,
    relative_error,
    run,
    snapshot,
    train_a_step,
)

WIDTH, HEADS = 12, 4


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def some_heads(surgery: ChannelSurgery) -> Tensor:
    """A random mask that removes something of every layer."""
    keep = random_mask(surgery)
    for layer in surgery.layers:
        keep[layer.slice.start] = False
        keep[layer.slice.stop - 1] = True
    return keep


class Reader(nn.Module):
    """Reads a memory of other widths; asks for the weights and drops them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=7, vdim=9, **options)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, padding: Tensor) -> Tensor:
        read, _ = self.attention(x, keys, values, key_padding_mask=padding)
        return self.head(x + read)


class Decoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 20, batch_first=True, **options)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(x)
        return self.head(self.layer(x, memory, tgt_mask=mask, tgt_is_causal=True))


class Encoder(nn.Module):
    """Two layers on padded batches, which torch's fused kernels take as nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        padding[0, -2:] = True
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


def encoder_layer(**options: Any) -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 20, **options), nn.Linear(WIDTH, 3)
    )


def transformer() -> nn.Module:
    return nn.Transformer(WIDTH, HEADS, 1, 1, 20, batch_first=True)


def vision_transformer() -> nn.Module:
    models = pytest.importorskip("torchvision.models.vision_transformer")
    return models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=20,
        num_classes=3,
    )  # fmt: skip


X = tokens(2, 5, WIDTH)
PADDING = torch.zeros(2, 6, dtype=torch.bool)
PADDING[0, -1] = True
MEMORY = (X, tokens(2, 6, 7), tokens(2, 6, 9), PADDING)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {
    "layer": (lambda: encoder_layer(batch_first=True), X, 1),
    "layer, norm first": (lambda: encoder_layer(batch_first=True, norm_first=True), X, 1),
    "layer, batch second": (encoder_layer, X, 1),
    "layer, no bias": (lambda: encoder_layer(batch_first=True, bias=False), X, 1),
    "layer, no batch": (lambda: encoder_layer(), X[0], 1),
    "encoder": (Encoder, X, 2),
    "decoder": (Decoder, (X, tokens(2, 6, WIDTH)), 2),
    "transformer": (transformer, (X, tokens(2, 6, WIDTH)), 3),
    "reader": (lambda: Reader(batch_first=True), MEMORY, 1),
    "reader, no bias": (lambda: Reader(batch_first=True, bias=False), MEMORY, 1),
    "vit": (vision_transformer, tokens(2, 3, 16, 16), 2),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", list(NETWORKS))
def test_whole_heads_go(name: str) -> None:
    make, x, attentions = NETWORKS[name]
    model = make().double().eval()
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    heads = [layer for layer in surgery.layers if layer.num_channels == HEADS]
    assert len(heads) == attentions
    keep = some_heads(surgery)
    assert_exact(surgery, x, keep)
    assert_macs_exact(surgery, x, keep)
    assert_same(before, snapshot(model))
    assert not any(isinstance(m, PrunedMultiheadAttention) for m in model.modules())

    full = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    train_a_step(model, x, optimizer)
    plan = surgery.apply(keep, [optimizer])
    for attention in (m for m in model.modules() if isinstance(m, nn.MultiheadAttention)):
        assert attention.num_heads < HEADS
        assert attention.out_proj.in_features == attention.num_heads * attention.head_dim
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    train_a_step(model, x, optimizer)

    plan.apply(full)
    full.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert relative_error(run(model.eval(), x), run(full.eval(), x)) == 0.0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_small_networks_leave_the_fused_kernels_alone() -> None:
    """The kernels of torch know nothing of missing heads, and are on by default in inference."""
    model = Encoder().double().eval()
    surgery = ChannelSurgery(model, X)
    keep = some_heads(surgery)
    assert model.encoder.use_nested_tensor
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(X)
    with surgery.shrunk(keep):
        assert not model.encoder.use_nested_tensor
    assert model.encoder.use_nested_tensor
    surgery.apply(keep)
    with torch.no_grad():
        assert torch.backends.mha.get_fastpath_enabled()
        assert relative_error(wanted, model(X)) < 1e-10
    with torch.inference_mode():
        assert relative_error(wanted, model(X)) < 1e-10


def test_feed_forward_widths_alone_leave_torchs_own_class() -> None:
    model = encoder_layer(batch_first=True).double()
    surgery = ChannelSurgery(model, X)
    keep = torch.ones(surgery.num_channels, dtype=torch.bool)
    (wide,) = (layer for layer in surgery.layers if layer.num_channels == 20)
    keep[wide.slice.start] = False
    surgery.apply(keep)
    assert type(model[0].self_attn) is nn.MultiheadAttention


def test_what_is_left_can_lose_heads_again() -> None:
    model = encoder_layer(batch_first=True).double()
    surgery = ChannelSurgery(model, X)
    keep = torch.ones(surgery.num_channels, dtype=torch.bool)
    keep[0] = False
    surgery.apply(keep)
    again = ChannelSurgery(model, X)
    assert [layer.num_channels for layer in again.layers] == [HEADS - 1, 20]
    keep = some_heads(again)
    assert_exact(again, X, keep)
    again.apply(keep)
    assert model[0].self_attn.num_heads < HEADS - 1


def test_weights_that_are_used_keep_the_heads() -> None:
    class Looker(Reader):
        def forward(self, *inputs: Tensor) -> Any:
            read, weights = self.attention(*inputs[:3])
            return self.head(inputs[0] + read), weights

    surgery = ChannelSurgery(Looker(batch_first=True).double(), MEMORY)
    assert not surgery.layers
    assert "attention: reduced over this dimension" in str(surgery)


def test_the_output_of_attention_may_become_narrower() -> None:
    """The fused kernel, which the example does not run, would read past the weights."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])

    model = Narrow().double().eval()
    surgery = ChannelSurgery(model, X)
    assert [layer.num_channels for layer in surgery.layers] == [HEADS, WIDTH]
    keep = torch.ones(surgery.num_channels, dtype=torch.bool)
    keep[-3:] = False
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(X)
    surgery.apply(keep)
    with torch.no_grad():
        assert relative_error(wanted, model(X)) < 1e-10
    assert model.attention.num_heads == HEADS
    assert model.attention.out_proj.out_features == model.head.in_features == WIDTH - 3


def test_masks_for_each_head_keep_the_heads() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    mask = tokens(2 * HEADS, 5, 5)
    assert not ChannelSurgery(Masked().double(), (X, mask)).layers
    assert len(ChannelSurgery(Masked().double(), (X, mask[0])).layers) == 1


def test_the_functional_form_keeps_the_heads_and_says_so() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS)

        def forward(self, x: Tensor) -> Tensor:
            a = self.attention
            return F.multi_head_attention_forward(
                x, x, x, a.embed_dim, a.num_heads, a.in_proj_weight, a.in_proj_bias, None, None,
                False, 0.0, a.out_proj.weight, a.out_proj.bias, need_weights=False,
            )[0] + x  # fmt: skip

    model = Functional().double()
    surgery = ChannelSurgery(model, X)
    assert not surgery.layers
    assert {name for name, *_ in surgery.frozen} >= {"attention.in_proj_weight"}


def test_the_embedding_goes_where_approximate_is_allowed() -> None:
    model = nn.Sequential(nn.Linear(7, WIDTH), encoder_layer(batch_first=True)).double()
    x = tokens(2, 5, 7)
    surgery = ChannelSurgery(model, x, allow_approximate=True)
    assert sorted(layer.num_channels for layer in surgery.layers) == [HEADS, WIDTH, 20]
    surgery.apply(some_heads(surgery))
    attention = model[1][0].self_attn
    assert attention.embed_dim == model[0].out_features < WIDTH
    train_a_step(model, x, torch.optim.AdamW(model.parameters()))
