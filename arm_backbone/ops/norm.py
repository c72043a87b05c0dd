"""LayerNorm before a branch, and the residual sum before it."""

from types import ModuleType

import torch
from torch import Tensor, nn

from .dispatch import computing_type, is_plain, row_kernels
from .library import first_order


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(x)`; under autocast in autocast's type at once, by way of float32."""
    kernels = _kernels(norm, x)
    return norm(x) if kernels is None else _Norm.apply(x, None, norm.weight, norm.bias, norm.eps, kernels)[1]


def add_layer_norm(x: Tensor, branch: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`x + branch` and its norm, as `layer_norm`."""
    kernels = _kernels(norm, x, branch)
    if kernels is not None:
        return _Norm.apply(x, branch, norm.weight, norm.bias, norm.eps, kernels)
    x = x + branch
    return x, norm(x)


def _kernels(norm: nn.LayerNorm, x: Tensor, branch: Tensor | None = None) -> ModuleType | None:
    dtype = computing_type(x)
    whole = norm.weight is not None and norm.bias is not None and norm.normalized_shape == x.shape[-1:]
    if dtype == x.dtype or not whole or not is_plain(norm, nn.LayerNorm):
        return None
    if branch is not None and (branch.shape != x.shape or torch.promote_types(x.dtype, branch.dtype) != x.dtype):
        return None
    if x.device.type == "cpu" and (x.dtype != torch.float32 or (branch is not None and branch.dtype != torch.bfloat16)):
        return None
    return row_kernels("norm_triton", x, branch, norm.weight, norm.bias, dtype=dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, kernels: ModuleType):
        total, out, *statistics = kernels.norm_forward(x, branch, weight, bias, eps, computing_type(x))
        ctx.kernels = kernels
        ctx.branch_type = None if branch is None else branch.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, *statistics)
        return None if branch is None else total, out

    @staticmethod
    @first_order
    def backward(ctx, grad_total: Tensor | None, grad: Tensor | None):
        total, weight, mean, scale = ctx.saved_tensors
        if grad is None:  # nothing depends on the norm
            of_branch = None if ctx.branch_type is None or grad_total is None else grad_total.to(ctx.branch_type)
            return grad_total, of_branch, None, None, None, None
        grads = ctx.kernels.norm_backward(grad, grad_total, total, weight, mean, scale, ctx.branch_type)
        return *grads, None, None
