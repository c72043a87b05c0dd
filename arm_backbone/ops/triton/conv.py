"""Causal depthwise convolution and SiLU in Triton: all directions in one launch, tokens indexed in scan order.

A program handles a stretch of tokens in one direction of an image. It keeps the last tokens of its channels in
registers, so it reads each token once. The backward goes from the last token to the first, and starts some tokens after
its stretch.

Legend: B batch, K scan directions, L tokens, D channels, W taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import as_rows, by_direction
from .device import check_grid, device_guard

STRETCH = 64  # tokens per program, a multiple of AHEAD
AHEAD = 4  # tokens loaded per iteration
MAX_TAPS = AHEAD + 1
CHANNELS = 128  # per program: four per thread


@triton.jit
def _taps(weight, d, in_d, TAPS: tl.constexpr):
    taps = ()
    for j in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + d * TAPS + j, in_d, 0).to(tl.float32),)
    return taps


@triton.jit
def _token(x, order, t, length, row, in_d):
    """The token at step t of a direction as float32; 0 before the first and after the last step."""
    there = (t >= 0) & (t < length)
    at = tl.load(order + t, there, 0).to(tl.int32)
    return tl.load(x + at * row, in_d & there, 0).to(tl.float32)


@triton.jit
def _zeros(COUNT: tl.constexpr, CHANNELS: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros([CHANNELS], tl.float32),)
    return zeros


@triton.jit
def _before_silu(window, taps, offset, TAPS: tl.constexpr):
    total = offset
    for j in tl.static_range(TAPS):
        total += window[j] * taps[j]
    return total


@triton.jit(do_not_specialize=["images", "length"])
def _forward(
    x, weight, bias, orders, out,
    images, length, channels, row_x,
    TAPS: tl.constexpr, STRETCH: tl.constexpr, AHEAD: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_d = d < channels
    row = tl.program_id(2).to(tl.int64)
    k, image = row // images, row % images
    x, out = x + image * length * row_x + d, out + row * length * channels + d
    order = orders + k * length
    taps = _taps(weight + k * channels * TAPS, d, in_d, TAPS)
    offset = tl.load(bias + k * channels + d, in_d, 0).to(tl.float32)
    first = tl.program_id(0) * STRETCH
    window = ()
    for j in tl.static_range(TAPS - 1):
        window = window + (_token(x, order, first - (TAPS - 1 - j), length, row_x, in_d),)
    for t in range(first, tl.minimum(first + STRETCH, length), AHEAD):
        places, tokens = (), ()
        for v in tl.static_range(AHEAD):
            places = places + (tl.load(order + t + v, t + v < length, 0).to(tl.int32),)
            tokens = tokens + (_token(x, order, t + v, length, row_x, in_d),)
        for v in tl.static_range(AHEAD):
            window = window + (tokens[v],)
            value = _before_silu(window, taps, offset, TAPS)
            value = value / (1 + tl.exp(-value))
            tl.store(out + places[v] * channels, value.to(out.dtype.element_ty), in_d & (t + v < length))
            window = window[1:]


@triton.jit(do_not_specialize=["images", "length"])
def _backward(
    x, weight, bias, orders, grad, grad_x, grad_weight, grad_bias,
    images, length, channels, row_x,
    TAPS: tl.constexpr, STRETCH: tl.constexpr, AHEAD: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A direction's part of the gradient of x, and a stretch's parts of those of weight and bias."""
    stretch = tl.program_id(0)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_d = d < channels
    row = tl.program_id(2).to(tl.int64)
    k, image = row // images, row % images
    x = x + image * length * row_x + d
    grad, grad_x = grad + row * length * channels + d, grad_x + row * length * channels + d
    order = orders + k * length
    taps = _taps(weight + k * channels * TAPS, d, in_d, TAPS)
    offset = tl.load(bias + k * channels + d, in_d, 0).to(tl.float32)
    sum_bias = tl.zeros([CHANNELS], tl.float32)
    sums, later, window = _zeros(TAPS, CHANNELS), _zeros(TAPS - 1, CHANNELS), ()
    first = stretch * STRETCH
    last = first + STRETCH - 1 + AHEAD
    for j in tl.static_range(TAPS - 1):  # the window of token `last` without its oldest token
        window = window + (_token(x, order, last - (TAPS - 2 - j), length, row_x, in_d),)
    for i in range(0, STRETCH + AHEAD, AHEAD):  # the first iteration only reads tokens after the stretch
        places, tokens, grads = (), (), ()
        for v in tl.static_range(AHEAD):
            t = last - i - v
            places = places + (tl.load(order + t, t < length, 0).to(tl.int32),)
            tokens = tokens + (_token(x, order, t - (TAPS - 1), length, row_x, in_d),)
            grads = grads + (_token(grad, order, t, length, channels, in_d),)
        for v in tl.static_range(AHEAD):
            t = last - i - v
            window = (tokens[v],) + window
            value = _before_silu(window, taps, offset, TAPS)
            sigmoid = 1 / (1 + tl.exp(-value))
            g = grads[v] * sigmoid * (1 + value * (1 - sigmoid))
            later = (g,) + later  # gradients before SiLU, of this token and of those after it
            inside = t < first + STRETCH
            own = tl.where(inside, g, 0)
            sum_bias += own
            new, total = (), tl.zeros([CHANNELS], tl.float32)
            for j in tl.static_range(TAPS):
                new = new + (sums[j] + own * window[j],)
                total += later[j] * taps[TAPS - 1 - j]
            sums = new
            tl.store(grad_x + places[v] * channels, total.to(grad_x.dtype.element_ty), in_d & inside & (t < length))
            later, window = later[: TAPS - 1], window[: TAPS - 1]
    part = stretch * tl.num_programs(2) + row
    tl.store(grad_bias + part * channels + d, sum_bias, in_d)
    for j in tl.static_range(TAPS):
        tl.store(grad_weight + (part * TAPS + j) * channels + d, sums[j], in_d)


def _run(kernel, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor, *others: Tensor) -> None:
    (batch, length, channels), (directions, _, taps) = x.shape, weight.shape
    if length * max(x.stride(1), channels) >= 2**31:  # the kernels' indices have 32 bits
        raise ValueError(f"x {tuple(x.shape)} has 2^31 or more numbers per image, too many for Triton; reduce it")
    check_grid(directions * batch)
    grid = (triton.cdiv(length, STRETCH), triton.cdiv(channels, CHANNELS), directions * batch)
    if all(grid):
        x, row_x = as_rows(x)
        inputs = (x, *(v.contiguous() for v in (weight, bias, orders)))
        sizes = dict(TAPS=taps, STRETCH=STRETCH, AHEAD=AHEAD, CHANNELS=CHANNELS)
        kernel[grid](*inputs, *others, batch, length, channels, row_x, **sizes, num_warps=1)


def supports_conv(taps: int) -> bool:
    """1 to MAX_TAPS taps."""
    return 1 <= taps <= MAX_TAPS


@device_guard
def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""
    out = x.new_empty(len(orders), *x.shape)
    _run(_forward, x, weight, bias, orders, out)
    return out.transpose(0, 1)


@device_guard
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    directions, channels, taps = weight.shape
    grad = by_direction(grad)
    grad_x = x.new_empty(grad.shape)
    parts = triton.cdiv(x.shape[1], STRETCH), directions, len(x)
    grad_weight = torch.empty(*parts, taps, channels, device=x.device, dtype=torch.float32)
    grad_bias = torch.empty(*parts, channels, device=x.device, dtype=torch.float32)
    _run(_backward, x, weight, bias, orders, grad, grad_x, grad_weight, grad_bias)
    grad_weight = grad_weight.sum((0, 2)).transpose(1, 2).contiguous()
    return grad_x.sum(0), grad_weight.to(weight.dtype), grad_bias.sum((0, 2)).to(bias.dtype)
