"""SiLU gate (of the mixer's output and of the SwiGLU), optionally fused with the linear layer after it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import CAST_FLOATS
from .dispatch import GateKernels, direct_gate
from .library import compute_dtype, is_plain, needs_grad, no_double_backward


def silu_gate(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)` for tensors of one shape.

    Kernels compute it in one pass and save only x and z for the backward. torch.compile fuses the plain expression.
    """
    kernels = direct_gate(x, z)
    if kernels is None:
        return x * F.silu(z)
    return _Gate.apply(x, z, kernels) if needs_grad(x, z) else kernels.gate_forward(x, z)


def gated_linear(x: Tensor, z: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(x * silu(z))`; with kernels the layer's input is not saved but recomputed in the backward.

    A layer that is not a plain `nn.Linear` (a subclass, with hooks or with another `forward`) is simply called.
    """
    fused = torch.is_grad_enabled() and is_plain(linear, nn.Linear) and fits(x, linear)
    kernels = direct_gate(x, z, linear.weight, linear.bias) if fused else None
    if kernels is None:
        return linear(silu_gate(x, z))
    return _GatedLinear.apply(x, z, linear.weight, linear.bias, kernels)


def fits(x: Tensor, linear: nn.Linear) -> bool:
    """Whether the layer's own call computes in x's dtype; for parameters of other dtypes it may raise."""
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    convertible = CAST_FLOATS if autocast else {x.dtype}
    parameters = (linear.weight, linear.bias)
    return x.dtype == compute_dtype(x) and all(p is None or p.dtype in convertible for p in parameters)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor, kernels: GateKernels) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(x, z)
        return kernels.gate_forward(x, z)

    @staticmethod
    @no_double_backward
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.gate_backward(grad, *ctx.saved_tensors), None


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, kernels: GateKernels) -> Tensor:
        ctx.kernels, ctx.dtypes = kernels, (weight.dtype, None if bias is None else bias.dtype)
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, z, weight)
        return F.linear(kernels.gate_forward(x, z), weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @no_double_backward
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            grad_weight = grad_bias = None
            if ctx.needs_input_grad[2]:
                grad_weight = (rows.mT @ ctx.kernels.gate_forward(x, z).flatten(0, -2)).to(ctx.dtypes[0])
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0, dtype=torch.float32).to(ctx.dtypes[1])
            grad_gated = (rows @ weight).view(x.shape)
            grad_x, grad_z = ctx.kernels.gate_backward(grad_gated, x, z, grad_gated)
        return grad_x, grad_z, grad_weight, grad_bias, None
