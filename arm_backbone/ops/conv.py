"""Causal depthwise convolution and SiLU in several scan orders: the step before the selective scan.

Legend: B batch, K scan directions, L tokens, D channels, W taps.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .cpu import kernels as native
from .dispatch import triton_unavailable
from .layout import empty_by_direction
from .library import define, differentiate


def cross_conv(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """Depthwise convolution along each scan order, zero before the first step, then SiLU.

    Args:
        x: (B, L, D), in token order.
        weight: (K, D, W), of any floating-point type; the last tap is the current token, the first the one W - 1 steps
            before.
        bias: (K, D), likewise.
        orders: (K, L) int64; `orders[k, t]` is the token that direction k visits at step t.

    Returns:
        (B, K, L, D), in token order.

    Raises:
        ValueError: when shapes do not go together, or orders are of another type.
    """
    if x.ndim != 3 or weight.ndim != 3 or x.shape[2] != weight.shape[1]:
        raise ValueError(
            f"x (B, L, D) and weight (K, D, W) do not go together: {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if bias.shape != weight.shape[:2] or orders.shape != (len(weight), x.shape[1]):
        raise ValueError(
            f"bias must be (K, D) and orders (K, L); got {tuple(bias.shape)} and {tuple(orders.shape)} "
            f"with x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        )
    if orders.dtype != torch.int64:
        raise ValueError(f"orders must be int64, not {orders.dtype}")
    return _cross_conv(x, weight, bias, orders)


def _shifts(taps: int) -> list[int]:
    """How many steps before the current one each tap reads."""
    return [taps - 1 - j for j in range(taps)]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, L, D) in scan order, weight (D, W) -> (B, L, D) before SiLU."""
    out = torch.addcmul(bias, x, weight[:, -1])
    for j, shift in enumerate(_shifts(weight.shape[1])[:-1]):
        if shift < x.shape[1]:
            out[:, shift:].addcmul_(x[:, : x.shape[1] - shift], weight[:, j])
    return out


def _run(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    kernels = _kernels(x, weight)
    if kernels is not None:
        return kernels.conv_forward(x, weight, bias, orders)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    out = empty_by_direction(x, x.shape[0], len(orders), *x.shape[1:])
    for k, order in enumerate(orders):
        scanned = _convolve(x.index_select(1, order), weight[k], bias[k])
        out[:, k].index_copy_(1, order, F.silu(scanned, inplace=True))
    return out


def _kernels(x: Tensor, weight: Tensor) -> ModuleType | None:
    """The module with the kernels for x's device and type; None where there are none."""
    if x.dtype == torch.float64:
        return None
    if x.device.type == "cpu":
        return native if native.unavailable() is None and weight.shape[2] <= native.MAX_TAPS else None
    if triton_unavailable(x.device) is None:
        from .triton import conv as conv_triton  # imports triton, which not every machine has

        return conv_triton if weight.shape[2] <= conv_triton.MAX_TAPS else None
    return None


def _fake(x, weight, bias, orders):
    return empty_by_direction(x, x.shape[0], orders.shape[0], *x.shape[1:])


_cross_conv = define("cross_conv", _run, _fake)


def _run_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(x, weight)
    if kernels is not None:
        return kernels.conv_backward(grad, x, weight, bias, orders)
    types = weight.dtype, bias.dtype
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    length = x.shape[1]
    for k, order in enumerate(orders):
        scanned = x.index_select(1, order)
        # the activation is made again: one pass, and nothing to keep
        grad_pre = torch.ops.aten.silu_backward(
            grad[:, k].index_select(1, order), _convolve(scanned, weight[k], bias[k])
        )
        grad_bias[k] = grad_pre.sum((0, 1))
        grad_scanned = torch.zeros_like(scanned)
        for j, shift in enumerate(_shifts(weight.shape[2])):
            if shift >= length:
                continue
            ahead = grad_pre[:, shift:]
            grad_weight[k, :, j] = (ahead * scanned[:, : length - shift]).sum((0, 1))
            grad_scanned[:, : length - shift].addcmul_(ahead, weight[k, :, j])
        grad_x.index_add_(1, order, grad_scanned)
    return grad_x, grad_weight.to(types[0]), grad_bias.to(types[1])


def _fake_backward(grad, x, weight, bias, orders):
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)


_cross_conv_backward = define("cross_conv_backward", _run_backward, _fake_backward)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return (*_cross_conv_backward(grad, *ctx.saved_tensors), None)


differentiate(_cross_conv, _setup_context, _backward)


@register_flop_formula(torch.ops.arm.cross_conv)
def _flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0] * weight_shape[1] * weight_shape[2]


@register_flop_formula(torch.ops.arm.cross_conv_backward)
def _backward_flops(grad_shape, x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 3 * _flops(x_shape, weight_shape)
