"""Causal depthwise convolution and SiLU in plain PyTorch, one direction after the other.

Legend: B batch, K scan directions, L tokens, D channels, W taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import empty_by_direction


def supports_conv(taps: int) -> bool:
    """Any number of taps."""
    return True


def _shifts(taps: int) -> list[int]:
    """How many steps back each tap reads."""
    return [taps - 1 - j for j in range(taps)]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, L, D) in scan order, weight (D, W) -> (B, L, D) before SiLU."""
    out = torch.addcmul(bias, x, weight[:, -1])
    for j, shift in enumerate(_shifts(weight.shape[1])[:-1]):
        if shift < x.shape[1]:
            out[:, shift:].addcmul_(x[:, : x.shape[1] - shift], weight[:, j])
    return out


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    out = empty_by_direction(x, x.shape[0], len(orders), *x.shape[1:])
    for k, order in enumerate(orders):
        scanned = _convolve(x.index_select(1, order), weight[k], bias[k])
        out[:, k].index_copy_(1, order, F.silu(scanned, inplace=True))
    return out


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    dtypes = weight.dtype, bias.dtype
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    length = x.shape[1]
    for k, order in enumerate(orders):
        scanned = x.index_select(1, order)
        # recompute the input of SiLU, so that the forward need not save it
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
    return grad_x, grad_weight.to(dtypes[0]), grad_bias.to(dtypes[1])
