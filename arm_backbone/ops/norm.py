"""LayerNorm before a branch, and the residual sum before it."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .eager import computing_type, fuses, is_plain


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(x)`; under autocast on a GPU in autocast's type at once, by way of float32."""
    if _fuses(norm, x):
        return _Norm.apply(x, None, norm.weight, norm.bias, norm.eps)[1]
    return norm(x)


def add_layer_norm(x: Tensor, branch: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`x + branch` and its norm, as `layer_norm`."""
    if _fuses(norm, x, branch) and x.dtype == torch.promote_types(x.dtype, branch.dtype):
        return _Norm.apply(x, branch, norm.weight, norm.bias, norm.eps)
    x = x + branch
    return x, norm(x)


def _fuses(norm: nn.LayerNorm, *tensors: Tensor) -> bool:
    x = tensors[0]
    return (
        computing_type(x) != x.dtype
        and is_plain(norm, nn.LayerNorm)
        and norm.weight is not None
        and norm.bias is not None
        and norm.normalized_shape == x.shape[-1:]
        and fuses(*tensors, norm.weight, norm.bias)
    )


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float):
        from .norm_triton import norm_forward  # imports triton, which not every machine has

        total, out, *statistics = norm_forward(x, branch, weight, bias, eps, computing_type(x))
        ctx.branch_type = None if branch is None else branch.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, *statistics)
        return None if branch is None else total, out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: Tensor | None, grad: Tensor | None):
        from .norm_triton import norm_backward

        total, weight, mean, scale = ctx.saved_tensors
        if grad is None:  # nothing depends on the norm
            of_branch = None if ctx.branch_type is None or grad_total is None else grad_total.to(ctx.branch_type)
            return grad_total, of_branch, None, None, None
        return *norm_backward(grad, grad_total, total, weight, mean, scale, ctx.branch_type), None
