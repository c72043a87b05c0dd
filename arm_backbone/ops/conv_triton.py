"""Causal depthwise convolution and SiLU in Triton, all directions in one launch, tokens read and written by index.

Legend: B batch, K scan directions, L tokens, D channels, W taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scan_order import inverse_orders
from .layout import by_direction

TOKENS, CHANNELS = 16, 64  # of a program


@triton.jit
def _before_silu(
    x, weight, bias, orders, t, d, image, k, length, channels,
    TAPS: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Steps t of direction k before SiLU, (TILE_T, TILE_D)."""
    in_d = d < channels
    total = tl.zeros([TILE_T, TILE_D], tl.float32) + tl.load(bias + k * channels + d, in_d, 0).to(tl.float32)[None, :]
    for j in tl.static_range(TAPS):
        step = t - (TAPS - 1 - j)
        there = (step >= 0) & (step < length)
        token = tl.load(orders + k * length + step, there, 0)
        at = (image * length + token)[:, None] * channels + d[None, :]
        values = tl.load(x + at, there[:, None] & in_d[None, :], 0).to(tl.float32)
        tap = tl.load(weight + (k * channels + d) * TAPS + j, in_d, 0).to(tl.float32)
        total += values * tap[None, :]
    return total


@triton.jit
def _forward(
    x, weight, bias, orders, out,
    images, length, channels,
    TAPS: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TILE_T + tl.arange(0, TILE_T)
    d = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(2).to(tl.int64)
    k, image = row // images, row % images
    value = _before_silu(x, weight, bias, orders, t, d, image, k, length, channels, TAPS, TILE_T, TILE_D)
    value = value / (1 + tl.exp(-value))
    token = tl.load(orders + k * length + t, t < length, 0)
    at = (row * length + token)[:, None] * channels + d[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), (t < length)[:, None] & (d < channels)[None, :])


@triton.jit
def _backward(
    grad, x, weight, bias, orders, grad_sum, grad_weight, grad_bias,
    images, length, channels,
    TAPS: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """The gradient before SiLU, in scan order, and a part of those of weight and bias."""
    tile = tl.program_id(0)
    t = tile * TILE_T + tl.arange(0, TILE_T)
    d = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(2).to(tl.int64)
    k, image = row // images, row % images
    in_d = d < channels
    there = (t < length)[:, None] & in_d[None, :]
    value = _before_silu(x, weight, bias, orders, t, d, image, k, length, channels, TAPS, TILE_T, TILE_D)
    gate = 1 / (1 + tl.exp(-value))
    token = tl.load(orders + k * length + t, t < length, 0)
    g = tl.load(grad + (row * length + token)[:, None] * channels + d[None, :], there, 0).to(tl.float32)
    g = g * gate * (1 + value * (1 - gate))
    tl.store(grad_sum + (row * length + t)[:, None] * channels + d[None, :], g, there)
    part = tile * tl.num_programs(2) + row
    tl.store(grad_bias + part * channels + d, tl.sum(g, 0), in_d)
    for j in tl.static_range(TAPS):
        step = t - (TAPS - 1 - j)
        read = (step >= 0) & (step < length)
        source = tl.load(orders + k * length + step, read, 0)
        at = (image * length + source)[:, None] * channels + d[None, :]
        values = tl.load(x + at, read[:, None] & in_d[None, :], 0).to(tl.float32)
        tl.store(grad_weight + (part * TAPS + j) * channels + d, tl.sum(g * values, 0), in_d)


@triton.jit
def _grad_input(
    grad_sum, weight, inverse, grad_x,
    directions, images, length, channels,
    TAPS: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """The gradient of a token: from its own step and the TAPS - 1 after it, in every direction."""
    token = tl.program_id(0) * TILE_T + tl.arange(0, TILE_T)
    d = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    image = tl.program_id(2).to(tl.int64)
    in_d = d < channels
    total = tl.zeros([TILE_T, TILE_D], tl.float32)
    for k in range(directions):
        t = tl.load(inverse + k * length + token, token < length, length)
        for s in tl.static_range(TAPS):
            there = (t + s < length)[:, None] & in_d[None, :]
            at = ((k * images + image) * length + t + s)[:, None] * channels + d[None, :]
            tap = tl.load(weight + (k * channels + d) * TAPS + (TAPS - 1 - s), in_d, 0).to(tl.float32)
            total += tl.load(grad_sum + at, there, 0) * tap[None, :]
    at = (image * length + token)[:, None] * channels + d[None, :]
    tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), (token < length)[:, None] & in_d[None, :])


def _run(kernel, rows: int, length: int, channels: int, taps: int, *arguments) -> None:
    grid = (triton.cdiv(length, TOKENS), triton.cdiv(channels, CHANNELS), rows)
    if all(grid):
        kernel[grid](*arguments, length, channels, TAPS=taps, TILE_T=TOKENS, TILE_D=CHANNELS)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""
    (batch, length, channels), (directions, _, taps) = x.shape, weight.shape
    out = x.new_empty(directions, batch, length, channels)
    tensors = (x.contiguous(), weight.contiguous(), bias.contiguous(), orders.contiguous(), out)
    _run(_forward, batch * directions, length, channels, taps, *tensors, batch)
    return out.transpose(0, 1)


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    (batch, length, channels), (directions, _, taps) = x.shape, weight.shape
    grad, x, weight, bias, orders = by_direction(grad), *(v.contiguous() for v in (x, weight, bias, orders))
    grad_sum = torch.empty(directions, batch, length, channels, device=x.device)
    tiles = triton.cdiv(length, TOKENS)
    grad_weight = torch.empty(tiles, directions, batch, taps, channels, device=x.device)
    grad_bias = torch.empty(tiles, directions, batch, channels, device=x.device)
    tensors = (grad, x, weight, bias, orders, grad_sum, grad_weight, grad_bias)
    _run(_backward, batch * directions, length, channels, taps, *tensors, batch)
    grad_x = torch.empty_like(x)
    tensors = (grad_sum, weight, inverse_orders(orders), grad_x)
    _run(_grad_input, batch, length, channels, taps, *tensors, directions, batch)
    grad_weight = grad_weight.sum((0, 2)).transpose(1, 2).contiguous()
    return grad_x, grad_weight.to(weight.dtype), grad_bias.sum((0, 2)).to(bias.dtype)
