"""Rows: element-wise ops, and tensors made from sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.rows.row import Row, own


def _written(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape)
    y[:, : x.shape[1] // 2] = x[:, x.shape[1] // 2 :]
    return y


ELEMENTWISE = [
    Row("aten::relu", torch.relu),
    Row("aten::sigmoid", torch.sigmoid),
    Row("aten::exp", lambda x: torch.exp(-x)),
    Row("aten::cos", torch.cos),
    Row("aten::gelu", F.gelu),
    Row("aten::hardswish", F.hardswish),
    Row("aten::hardswish_", lambda x: F.hardswish(x + 0, inplace=True)),
    Row("aten::hardtanh", lambda: nn.Hardtanh(-0.5, 0.5)),
    Row("aten::hardtanh_", lambda: nn.ReLU6(inplace=True)),
    Row("aten::hardsigmoid_", lambda: nn.Hardsigmoid(inplace=True)),
    Row("aten::leaky_relu", lambda: nn.LeakyReLU()),
    Row("aten::leaky_relu_", lambda: nn.LeakyReLU(inplace=True)),
    Row("aten::elu_", lambda: nn.ELU(inplace=True)),
    Row("aten::celu_", lambda: nn.CELU(2.0, inplace=True)),
    Row("aten::_prelu_kernel", lambda: nn.PReLU(8)),
    Row("aten::_prelu_kernel", lambda: nn.PReLU()),
    Row("aten::add", own(torch.add, 8, 1, 1)),
    Row("aten::mul", own(torch.mul, 8, 1, 1, buffer=True)),
    Row("aten::add", lambda x: x + torch.ones(8, 1, 1).to(x), 0),
    Row("aten::add", lambda x: x + x.mean(1, keepdim=True), 0),
    Row("aten::lerp", lambda x: torch.lerp(x, x.cos(), 0.5)),
    Row("aten::clamp", lambda x: x.clamp(-0.5, 0.5)),
    Row("aten::where", lambda x: torch.where(x > 0, x, x.new_tensor(0.25))),
    Row("aten::heaviside", lambda x: x * torch.heaviside(x.detach(), x.new_tensor(1.0))),
    Row("aten::masked_fill", lambda x: x.masked_fill(x > 0, 0.5)),
    Row("aten::fmod", lambda x: x.fmod(0.5)),
    Row("aten::floor_divide", lambda x: x * torch.floor_divide(x.detach(), 0.5)),
    Row("aten::complex", lambda x: torch.complex(x, x).abs()),
    Row("aten::polar", lambda x: torch.polar(x.abs(), x).abs()),
    Row("aten::_conj", lambda x: torch.complex(x, x).conj().abs()),
    Row("aten::copy_", _written, 4),
    Row("aten::clone", lambda x: x.clone()),
    Row("aten::detach", lambda x: x + x.detach()),
    Row("aten::alias", lambda x: torch.ops.aten.alias(x)),
    Row("aten::_to_copy", lambda x: x.float().double()),
    Row("aten::fill_", lambda x: x + torch.empty_like(x).fill_(0.5)),
    Row("aten::zero_", lambda x: x + torch.empty_like(x).zero_()),
    Row("aten::lift_fresh", lambda x: x * torch.tensor(2.0)),
    Row("aten::normal_", lambda x: x + 0 * torch.empty_like(x).normal_()),
    Row("aten::uniform_", lambda x: x + 0 * torch.empty_like(x).uniform_()),
    Row("aten::exponential_", lambda x: x + 0 * torch.empty_like(x).exponential_()),
    Row("aten::random_", lambda x: x + 0 * torch.empty_like(x).random_(3)),
    Row("aten::bernoulli_", lambda: nn.Dropout2d(0.5)),
    Row("aten::native_dropout", lambda x: torch.ops.aten.native_dropout(x, 0.5, False)[0]),
]


CREATION = [
    Row("aten::zeros", lambda x: x + torch.zeros(x.shape[1], 1, 1).to(x)),
    Row("aten::ones", lambda x: x * torch.ones(x.shape[1:]).to(x)),
    Row("aten::ones", lambda x: x * torch.ones(8, 1, 1).to(x), 0),
    Row("aten::full", lambda x: x + torch.full((x.shape[1], 1, 1), 0.5).to(x)),
    Row("aten::rand", lambda x: x + 0 * torch.rand(x.shape).to(x)),
    Row("aten::randn", lambda x: x + 0 * torch.randn(x.shape).to(x)),
    Row("aten::new_zeros", lambda x: x + x.new_zeros(x.shape)),
    Row("aten::new_ones", lambda x: x + x.new_ones(x.shape[1], 1, 1)),
    Row("aten::new_full", lambda x: x + x.new_full((x.shape[1], 1, 1), 2.0)),
    Row("aten::new_empty", lambda x: x.new_empty(x.shape).copy_(x)),
    Row("aten::empty", lambda x: torch.empty(x.shape, dtype=x.dtype).copy_(x)),
    Row("aten::empty_like", lambda x: torch.empty_like(x).copy_(x)),
    Row("aten::zeros_like", lambda x: x + torch.zeros_like(x)),
    Row("aten::ones_like", lambda x: x + torch.ones_like(x)),
    Row("aten::full_like", lambda x: x + torch.full_like(x, 2.0)),
    Row("aten::rand_like", lambda x: x + 0 * torch.rand_like(x)),
    Row("aten::randint_like", lambda x: x + 0 * torch.randint_like(x, 3)),
    Row("aten::randn_like", lambda x: x + 0 * torch.randn_like(x)),
]
