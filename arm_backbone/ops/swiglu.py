"""SwiGLU under autocast on a GPU: its three linear layers are two matrix products and one conversion of their weights.

Small batches there wait for launches. On a CPU the two maps of the joined product, 2 H apart, are slower to read.

Legend: C channels, H hidden channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import GateKernels, direct_gate
from .gate import fits, gated_linear
from .library import cast_together, compute_dtype, copy_together, is_plain, needs_grad, no_double_backward


def swiglu(x: Tensor, gate: nn.Linear, value: nn.Linear, out: nn.Linear) -> Tensor:
    """`out(value(x) * silu(gate(x)))`.

    Where autocast converts the weights on a GPU, `value` and `gate` are one product with a matrix (2 H, C).

    Args:
        x: (..., C).
    """
    x = x.to(compute_dtype(x))  # once for both layers
    kernels = _kernels(x, gate, value, out)
    if kernels is None:
        return gated_linear(value(x), gate(x), out)
    parameters = [parameter for linear in (value, gate, out) for parameter in (linear.weight, linear.bias)]
    if needs_grad(x, *parameters):
        return _SwiGLU.apply(x, *parameters, kernels)
    return _forward(x, parameters, kernels)[0]


def _kernels(x: Tensor, gate: nn.Linear, value: nn.Linear, out: nn.Linear) -> GateKernels | None:
    """Triton's kernels if all layers are plain and autocast converts their weights; else None."""
    kernels, linears = direct_gate(x, x), (gate, value, out)
    if kernels is None or not kernels.LAUNCHES_COST:
        return None
    if not all(is_plain(linear, nn.Linear) and fits(x, linear) and linear.bias is not None for linear in linears):
        return None
    parameters = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
    dtypes = {parameter.dtype for parameter in parameters}
    if len(dtypes) > 1 or x.dtype in dtypes or gate.weight.shape != value.weight.shape:
        return None
    return direct_gate(x, x, *parameters)


def _forward(x: Tensor, parameters: list[Tensor], kernels: GateKernels) -> tuple[Tensor, ...]:
    """The result, and for the backward both maps (..., 2 H) and the converted weights."""
    value, value_bias, gate, gate_bias, out, out_bias = parameters
    hidden, channels = gate.shape
    joined, bias = x.new_empty(2 * hidden, channels), x.new_empty(2 * hidden)
    low, low_bias = x.new_empty(out.shape), x.new_empty(out_bias.shape)
    sources = value, gate, value_bias, gate_bias, out, out_bias
    copy_together([*joined.chunk(2), *bias.chunk(2), low, low_bias], sources)
    both = F.linear(x, joined, bias)
    return F.linear(kernels.gate_forward(*both.chunk(2, -1)), low, low_bias), both, joined, low


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, *arguments) -> Tensor:
        *parameters, ctx.kernels = arguments
        y, *saved = _forward(x, parameters, ctx.kernels)
        ctx.dtype = parameters[0].dtype
        ctx.save_for_backward(x, *saved)
        return y

    @staticmethod
    @no_double_backward
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, both, joined, out = ctx.saved_tensors
        grad, inputs, both = grad.flatten(0, -2), x.flatten(0, -2), both.flatten(0, -2)
        maps = both.chunk(2, -1)
        with torch.autocast(x.device.type, enabled=False):
            grad_out = grad.mT @ ctx.kernels.gate_forward(*maps) if ctx.needs_input_grad[5] else None
            grad_both = torch.empty_like(both)
            grads = grad_both.chunk(2, -1)
            torch.mm(grad, out, out=grads[0])
            ctx.kernels.gate_backward(grads[0], *maps, *grads)
            grad_joined = grad_both.mT @ inputs if any(ctx.needs_input_grad[1:5:2]) else None
            grad_x = (grad_both @ joined).view(x.shape) if ctx.needs_input_grad[0] else None
            of_bias = grad_both.sum(0, dtype=torch.float32).to(ctx.dtype).chunk(2)
            of_out_bias = grad.sum(0, dtype=torch.float32).to(ctx.dtype)
        grad_joined, grad_out = cast_together([grad_joined, grad_out], ctx.dtype)
        of_value, of_gate = (None, None) if grad_joined is None else grad_joined.chunk(2)
        return grad_x, of_value, of_bias[0], of_gate, of_bias[1], grad_out, of_out_bias, None
