"""Gating with SiLU, of the mixer's output and within the SwiGLU."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .scan import triton_unavailable


def silu_gate(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`; tensors of one shape.

    On a GPU in one pass, which keeps nothing but x and z for the backward. torch.compile fuses the plain expression.
    """
    if x.is_cuda and x.dtype == z.dtype != torch.float64 and x.numel() and not torch.compiler.is_compiling():
        if triton_unavailable(x.device) is None:
            return _Gate.apply(x, z)
    return x * F.silu(z)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, z: Tensor) -> Tensor:
        from .gate_triton import gate_forward  # imports triton, which not every machine has

        return gate_forward(x, z)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        from .gate_triton import gate_backward

        return gate_backward(grad, *ctx.saved_tensors)
