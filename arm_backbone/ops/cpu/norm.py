"""LayerNorm and RMSNorm on a CPU, optionally after a residual sum: calls of the compiled kernels."""

import torch
from torch import Tensor

from ..layout import as_rows
from .library import Norm, NormBackward, call, empty, pointer, to_float


def supports_norm(x: Tensor, branch: Tensor | None, centered: bool, dtype: torch.dtype) -> bool:
    """Float32 tokens to bfloat16 under autocast, and for RMSNorm to float32; a branch has the dtype of the result.

    PyTorch computes a LayerNorm of float32 in one pass, too, but an RMSNorm in several.
    """
    results = (torch.bfloat16,) if centered else (torch.bfloat16, torch.float32)
    return x.dtype == torch.float32 and dtype in results and (branch is None or branch.dtype == dtype)


def norm_forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centered: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + branch in float32, its norm in bfloat16 or float32 (`dtype`), and the mean and scale of each row."""
    width = x.shape[-1]
    count = x.numel() // width
    total = x if branch is None else x.new_empty(x.shape)
    out = x.new_empty(x.shape, dtype=dtype)
    mean, scale = empty(2, count).unbind()
    (x, row_x), (branch, row_branch) = as_rows(x), (None, 0) if branch is None else as_rows(branch)
    tensors = (x, branch, to_float(weight), to_float(bias), total, out, mean, scale)
    sizes = (count, width, int(centered), row_x, row_branch, int(dtype == torch.bfloat16))
    call("norm", Norm(*sizes, *(pointer(t) for t in tensors), eps))
    return total, out, mean, scale


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
    width, count = total.shape[-1], len(mean)
    grad_x = total.new_empty(total.shape)
    grad_branch = None if branch_dtype is None else total.new_empty(total.shape, dtype=branch_dtype)
    sums = empty(torch.get_num_threads(), 2, width)  # one part per thread
    (grad, row_grad), (total, row_x) = as_rows(grad), as_rows(total)
    grad_total, row_total = (None, 0) if grad_total is None else as_rows(grad_total)
    tensors = (grad, grad_total, total, to_float(weight), mean, scale, grad_x, grad_branch, sums)
    sizes = (count, width, int(centered), row_grad, row_total, row_x, int(grad.dtype == torch.bfloat16))
    call("norm_backward", NormBackward(*sizes, *(pointer(t) for t in tensors)))
    grad_weight, grad_bias = sums.sum(0).to(weight.dtype).unbind()
    return grad_x, grad_branch, grad_weight, grad_bias
