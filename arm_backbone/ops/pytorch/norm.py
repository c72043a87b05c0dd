"""LayerNorm and RMSNorm in plain PyTorch, optionally after a residual sum; tests compare other back ends with it."""

import torch
from torch import Tensor


def supports_norm(x: Tensor, branch: Tensor | None, centered: bool, dtype: torch.dtype) -> bool:
    """Any dtypes."""
    return True


def norm_forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centered: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + branch in x's dtype, its norm in `dtype`, and the mean and scale of each row, at least float32."""
    total = x if branch is None else (x + branch).to(x.dtype)
    value = total.to(torch.promote_types(x.dtype, torch.float32))
    mean = value.mean(-1) if centered else torch.zeros_like(value[..., 0])
    value = value - mean[..., None]
    scale = (value.square().mean(-1) + eps).rsqrt()
    out = value * scale[..., None] * weight
    out = out if bias is None else out + bias
    return total, out.to(dtype), mean.flatten(), scale.flatten()


def norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    centered: bool,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, of the branch in `branch_dtype` (None without one), of weight and of bias."""
    g = grad.flatten(0, -2).to(mean.dtype)
    normed = (total.flatten(0, -2) - mean[:, None]) * scale[:, None]
    grad_weight, grad_bias = (g * normed).sum(0), g.sum(0)
    g = g * weight
    to_x = g - normed * (g * normed).mean(1, keepdim=True)
    if centered:
        to_x = to_x - g.mean(1, keepdim=True)
    to_x = (to_x * scale[:, None]).view_as(total)
    if grad_total is not None:
        to_x = to_x + grad_total
    grad_x = to_x.to(total.dtype)
    grad_branch = None if branch_dtype is None else to_x.to(branch_dtype)
    return grad_x, grad_branch, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
