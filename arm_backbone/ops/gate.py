"""Gating with SiLU, of the mixer's output and within the SwiGLU, and the product after it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .eager import computing_type, fuses, is_plain


def silu_gate(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`; tensors of one shape.

    On a GPU in one pass, which keeps nothing but x and z for the backward. torch.compile fuses the plain expression.
    """
    if x.dtype == z.dtype and fuses(x, z):
        return _Gate.apply(x, z)
    return x * F.silu(z)


def gated_linear(x: Tensor, z: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(x * silu(z))`; on a GPU what the layer takes in is not kept, but made again in the backward.

    A layer that is more than an `nn.Linear` (a subclass, one with hooks or with another `forward`) is called as it is.
    """
    together = torch.is_grad_enabled() and x.dtype == z.dtype == computing_type(x) and is_plain(linear, nn.Linear)
    if not (together and fuses(x, z, linear.weight, linear.bias)):
        return linear(silu_gate(x, z))
    return _GatedLinear.apply(x, z, linear.weight, linear.bias)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor) -> Tensor:
        from .gate_triton import gate_forward  # imports triton, which not every machine has

        ctx.save_for_backward(x, z)
        return gate_forward(x, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        from .gate_triton import gate_backward

        return gate_backward(grad, *ctx.saved_tensors)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        from .gate_triton import gate_forward

        ctx.types = weight.dtype, None if bias is None else bias.dtype
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, z, weight)
        return F.linear(gate_forward(x, z), weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from .gate_triton import gate_backward, gate_forward

        x, z, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            grad_weight = grad_bias = None
            if ctx.needs_input_grad[2]:
                grad_weight = (rows.mT @ gate_forward(x, z).flatten(0, -2)).to(ctx.types[0])
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0, dtype=torch.float32).to(ctx.types[1])
            grad_x, grad_z = gate_backward((rows @ weight).view(x.shape), x, z, in_place=True)
        return grad_x, grad_z, grad_weight, grad_bias
