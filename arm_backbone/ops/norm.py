"""LayerNorm or RMSNorm, optionally fused with the preceding residual add."""

import torch
from torch import Tensor, nn

from .checks import CAST_FLOATS
from .dispatch import NormKernels, direct_norm
from .library import compute_dtype, is_plain, needs_grad, no_double_backward


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """`norm(x)`; kernels compute in float32 and return autocast's dtype.

    Without autocast only an RMSNorm of float32 on a CPU has a kernel.

    Args:
        norm: `nn.LayerNorm` (with or without bias) or `nn.RMSNorm` over the last axis can use kernels; any other
            module, or one with hooks, is simply called.
    """
    kernels = _kernels(norm, x, None)
    if kernels is None:
        return norm(x)
    return _run(norm, x, None, kernels)[1]


def add_layer_norm(x: Tensor, branch: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`x + branch` and `layer_norm(x + branch, norm)`."""
    kernels = _kernels(norm, x, branch)
    if kernels is None:
        x = x + branch
        return x, norm(x)
    return _run(norm, x, branch, kernels)


def _run(norm: nn.Module, x: Tensor, branch: Tensor | None, kernels: NormKernels) -> tuple[Tensor | None, Tensor]:
    bias, eps, centered = _bias(norm), _eps(norm, x), type(norm) is nn.LayerNorm
    if needs_grad(x, branch, norm.weight, bias):
        return _Norm.apply(x, branch, norm.weight, bias, eps, centered, kernels)
    return kernels.norm_forward(x, branch, norm.weight, bias, eps, centered, compute_dtype(x))[:2]


def _bias(norm: nn.Module) -> Tensor | None:
    return getattr(norm, "bias", None)  # RMSNorm has none


def _eps(norm: nn.Module, x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if norm.eps is None else norm.eps  # RMSNorm's default


def _kernels(norm: nn.Module, x: Tensor, branch: Tensor | None) -> NormKernels | None:
    """Kernels for this norm; None if the module must be called instead."""
    dtype = compute_dtype(x)
    kind = type(norm)
    if kind is nn.LayerNorm and dtype == x.dtype:  # PyTorch has a kernel
        return None
    if kind not in (nn.LayerNorm, nn.RMSNorm) or not is_plain(norm, kind):
        return None
    parameters = norm.weight, _bias(norm)
    if norm.weight is None or norm.normalized_shape != x.shape[-1:]:
        return None
    if any(p is not None and (p.shape != x.shape[-1:] or p.dtype not in CAST_FLOATS) for p in parameters):
        return None
    if branch is not None and (branch.shape != x.shape or torch.promote_types(x.dtype, branch.dtype) != x.dtype):
        return None
    return direct_norm(x, branch, *parameters, centered=kind is nn.LayerNorm, dtype=dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centered: bool,
        kernels: NormKernels,
    ):
        total, out, *statistics = kernels.norm_forward(x, branch, weight, bias, eps, centered, compute_dtype(x))
        ctx.kernels, ctx.centered, ctx.has_bias = kernels, centered, bias is not None
        ctx.branch_dtype = None if branch is None else branch.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, *statistics)
        return None if branch is None else total, out

    @staticmethod
    @no_double_backward
    def backward(ctx, grad_total: Tensor | None, grad: Tensor | None):
        total, weight, mean, scale = ctx.saved_tensors
        if grad is None:  # nothing depends on the norm
            grad_branch = None if ctx.branch_dtype is None or grad_total is None else grad_total.to(ctx.branch_dtype)
            return grad_total, grad_branch, None, None, None, None, None
        arguments = (grad, grad_total, total, weight, mean, scale, ctx.centered, ctx.branch_dtype)
        grad_x, grad_branch, grad_weight, grad_bias = ctx.kernels.norm_backward(*arguments)
        return grad_x, grad_branch, grad_weight, grad_bias if ctx.has_bias else None, None, None, None
