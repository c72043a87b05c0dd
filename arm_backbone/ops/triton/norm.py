"""LayerNorm and RMSNorm in Triton, optionally after a residual sum; float32 statistics, any output dtype."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import as_rows
from .device import device_guard

WARPS = 4


@triton.jit
def _forward(
    x, branch, weight, bias, total, out, mean, scale,
    width, row_x, row_branch, eps,
    WIDTH: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_BIAS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    there = column < width
    value = tl.load(x + row * row_x + column, there, 0).to(tl.float32)
    if HAS_BRANCH:
        value += tl.load(branch + row * row_branch + column, there, 0).to(tl.float32)
        value = value.to(total.dtype.element_ty)
        tl.store(total + row * width + column, value, there)
        value = value.to(tl.float32)
    centre = tl.sum(value) / width if CENTERED else 0.0
    value = tl.where(there, value - centre, 0)
    factor = 1 / tl.sqrt(tl.sum(value * value) / width + eps)
    tl.store(mean + row, centre)
    tl.store(scale + row, factor)
    value = value * factor * tl.load(weight + column, there, 0)
    if HAS_BIAS:
        value += tl.load(bias + column, there, 0)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), there)


@triton.jit(do_not_specialize=["count"])
def _backward(
    grad, grad_total, x, weight, mean, scale, grad_x, grad_branch, sums,
    count, width, row_grad, row_total, row_x,
    WIDTH: tl.constexpr, HAS_TOTAL: tl.constexpr, HAS_BRANCH: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """Gradients of every P-th row, for P programs, and their part of the gradients of weight and bias."""
    column = tl.arange(0, WIDTH)
    there = column < width
    of_weight = tl.load(weight + column, there, 0).to(tl.float32)
    sum_weight, sum_bias = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    row = tl.program_id(0).to(tl.int64)
    for _ in range(tl.program_id(0), count, tl.num_programs(0)):
        g = tl.load(grad + row * row_grad + column, there, 0).to(tl.float32)
        factor = tl.load(scale + row)
        normed = (tl.load(x + row * row_x + column, there, 0).to(tl.float32) - tl.load(mean + row)) * factor
        normed = tl.where(there, normed, 0)
        sum_weight += g * normed
        sum_bias += g
        g *= of_weight
        shift = tl.sum(g) / width if CENTERED else 0.0
        to_x = (g - shift - normed * (tl.sum(g * normed) / width)) * factor
        if HAS_TOTAL:
            to_x += tl.load(grad_total + row * row_total + column, there, 0).to(tl.float32)
        tl.store(grad_x + row * width + column, to_x.to(grad_x.dtype.element_ty), there)
        if HAS_BRANCH:
            tl.store(grad_branch + row * width + column, to_x.to(grad_branch.dtype.element_ty), there)
        row += tl.num_programs(0)
    tl.store(sums + (2 * tl.program_id(0)) * width + column, sum_weight, there)
    tl.store(sums + (2 * tl.program_id(0) + 1) * width + column, sum_bias, there)


def supports_norm(x: Tensor, branch: Tensor | None, centered: bool, dtype: torch.dtype) -> bool:
    """Any dtypes, under autocast; PyTorch has a kernel for a result of the dtype of x."""
    return dtype != x.dtype


@device_guard
def norm_forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centered: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + branch in x's dtype, its norm in `dtype`, and the mean and scale of each row in float32."""
    width = x.shape[-1]
    count = x.numel() // width
    total = x if branch is None else x.new_empty(x.shape)
    out = x.new_empty(x.shape, dtype=dtype)
    mean, scale = torch.empty(2, count, device=x.device, dtype=torch.float32).unbind()
    (x, row_x), (branch, row_branch) = as_rows(x), (branch, 0) if branch is None else as_rows(branch)
    _forward[(count,)](
        *(x, branch, weight, bias, total, out, mean, scale, width, row_x, row_branch, eps),
        **dict(WIDTH=triton.next_power_of_2(width), HAS_BRANCH=branch is not None, num_warps=WARPS),
        **dict(HAS_BIAS=bias is not None, CENTERED=centered),
    )
    return total, out, mean, scale


@device_guard
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
    separate = branch_dtype not in (None, total.dtype)
    grad_branch = total.new_empty(total.shape, dtype=branch_dtype) if separate else grad_x
    many = 8 * torch.cuda.get_device_properties(total.device).multi_processor_count if total.is_cuda else 3
    programs = min(count, many)
    sums = torch.empty(programs, 2, width, device=total.device, dtype=torch.float32)
    (grad, row_grad), (total, row_x) = as_rows(grad), as_rows(total)
    grad_total, row_total = (None, 0) if grad_total is None else as_rows(grad_total)
    _backward[(programs,)](
        *(grad, grad_total, total, weight, mean, scale, grad_x, grad_branch, sums),
        *(count, width, row_grad, row_total, row_x),
        **dict(WIDTH=triton.next_power_of_2(width), num_warps=WARPS),
        **dict(HAS_TOTAL=grad_total is not None, HAS_BRANCH=separate, CENTERED=centered),
    )
    grad_weight, grad_bias = sums.sum(0).to(weight.dtype).unbind()
    return grad_x, None if branch_dtype is None else grad_branch, grad_weight, grad_bias
