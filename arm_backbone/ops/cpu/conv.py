"""Causal depthwise convolution and SiLU on a CPU: calls of the compiled kernels.

Legend: B batch, K scan directions, L tokens, D channels, W taps.
"""

import torch
from torch import Tensor

from ..layout import as_rows, by_direction
from .library import Conv, call, checked_orders, empty, sum_parts, to_float

MAX_TAPS = 8  # as in csrc/kernels.h


def supports_conv(taps: int) -> bool:
    """1 to MAX_TAPS taps."""
    return 1 <= taps <= MAX_TAPS


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""
    half = x.dtype == torch.bfloat16
    out = empty(orders.shape[0], *x.shape, dtype=x.dtype if half else torch.float32)
    _run(x if half else x.float(), weight, bias, orders, half, backward=False, out=out)
    return out.to(x.dtype).transpose(0, 1)


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    half = x.dtype == grad.dtype == torch.bfloat16
    grad, grad_x = by_direction(grad if half else grad.float()), empty(x.shape)
    grad_weight, grad_bias = empty(x.shape[0], *weight.shape), empty(x.shape[0], *bias.shape)
    results = dict(grad_x=grad_x, grad_weight=grad_weight, grad_bias=grad_bias)
    _run(x if half else x.float(), weight, bias, orders, half, backward=True, grad=grad, **results)
    return grad_x.to(x.dtype), sum_parts(grad_weight).to(weight.dtype), sum_parts(grad_bias).to(bias.dtype)


def _run(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor, half: bool, backward: bool, **more: Tensor) -> None:
    x, row = as_rows(x)
    inputs = dict(x=x, weight=to_float(weight), bias=to_float(bias), orders=checked_orders(orders))
    pointers = {name: tensor.data_ptr() for name, tensor in (inputs | more).items()}
    sizes = (x.shape[0], len(orders), x.shape[1], x.shape[2], weight.shape[2], row, int(half))
    call("conv", Conv(*sizes, **pointers), int(backward))
