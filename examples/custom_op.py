"""Teach the analysis an op of your own: `python examples/custom_op.py`.

A network uses `shop::bias_gelu`, which nobody but this file knows. The channels that pass it stay
whole until a rule says how they come out; with the rule they can be removed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from lightning_slimga.graph import Labels, Op, rule


@torch.library.custom_op("shop::bias_gelu", mutates_args=())
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias): stands for a kernel of your own."""
    return F.gelu(x + bias[:, None, None])


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor):
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    grad_x = torch.ops.aten.gelu_backward(grad, x + bias[:, None, None])
    return grad_x, grad_x.sum((0, 2, 3))


bias_gelu.register_autograd(_backward, setup_context=_setup)


def teach() -> None:
    """Register the rule; a module of your own would do it at its top, below the op."""

    @rule("shop::bias_gelu")
    def channels_of_bias_gelu(op: Op, x: Tensor, bias: Tensor) -> Labels:
        """(N, C, H, W), (C,) -> (N, C, H, W): a channel goes together with its bias."""
        batch, channels, *positions = op.labels(x)
        return [batch, op.tie(channels, op.labels(bias)[0]), *positions]


class Block(nn.Module):
    """A convolution whose bias and activation are one kernel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return bias_gelu(self.conv(x), self.bias)


def network() -> nn.Module:
    """Two blocks and a classifier of ten classes, for images (N, 3, H, W)."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(Block(3, 16), Block(16, 32), pool)


def main() -> None:
    """Look at the network without and with the rule, and cut it."""
    torch.manual_seed(0)
    model, images = network(), torch.randn(2, 3, 16, 16)

    ignorant = ChannelSurgery(model, images)
    print(f"without the rule: {ignorant.num_channels} removable channels")
    print(f"  {ignorant.frozen[0][0]}: {ignorant.frozen[0][-1]}")

    teach()
    surgery = ChannelSurgery(model, images)
    print(f"with the rule: {surgery.num_channels} removable channels")

    keep = torch.rand(surgery.num_channels) > 0.5  # a search would choose them
    with torch.no_grad():
        with surgery.masked(keep):
            masked = model(images)
        with surgery.shrunk(keep):
            shrunk = model(images)
    print(f"masked and shrunk differ by {float((masked - shrunk).abs().max()):.0e}")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    surgery.apply(keep, [optimizer])
    F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    optimizer.step()
    print(f"the small network trains on: {[block.conv.out_channels for block in model[:2]]}")


if __name__ == "__main__":
    main()
