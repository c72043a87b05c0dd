"""Gating with SiLU, of the mixer's output and within the SwiGLU, and the product after it."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import computing_type, is_plain, row_kernels
from .library import first_order


def silu_gate(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`; tensors of one shape.

    Where there are kernels in one pass, which keeps nothing but x and z for the backward. torch.compile fuses the plain
    expression.
    """
    kernels = _kernels(x, z)
    return x * F.silu(z) if kernels is None else _Gate.apply(x, z, kernels)


def gated_linear(x: Tensor, z: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(x * silu(z))`; where there are kernels the layer's input is not kept, but made again in the backward.

    A layer that is more than an `nn.Linear` (a subclass, one with hooks or with another `forward`) is called as it is.
    """
    together = torch.is_grad_enabled() and x.dtype == computing_type(x) and is_plain(linear, nn.Linear)
    kernels = _kernels(x, z, linear.weight, linear.bias) if together else None
    if kernels is None:
        return linear(silu_gate(x, z))
    return _GatedLinear.apply(x, z, linear.weight, linear.bias, kernels)


def _kernels(x: Tensor, z: Tensor, *others: Tensor | None) -> ModuleType | None:
    alike = x.dtype == z.dtype and x.shape == z.shape
    return row_kernels("gate_triton", x, z, *others, dtype=x.dtype) if alike else None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor, kernels: ModuleType) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(x, z)
        return kernels.gate_forward(x, z)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.gate_backward(grad, *ctx.saved_tensors), None


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, kernels: ModuleType) -> Tensor:
        ctx.kernels, ctx.types = kernels, (weight.dtype, None if bias is None else bias.dtype)
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, z, weight)
        return F.linear(kernels.gate_forward(x, z), weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            grad_weight = grad_bias = None
            if ctx.needs_input_grad[2]:
                grad_weight = (rows.mT @ ctx.kernels.gate_forward(x, z).flatten(0, -2)).to(ctx.types[0])
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0, dtype=torch.float32).to(ctx.types[1])
            grad_x, grad_z = ctx.kernels.gate_backward((rows @ weight).view(x.shape), x, z, in_place=True)
        return grad_x, grad_z, grad_weight, grad_bias, None
