"""Convolution and scan for exported programs: PyTorch's own operators only, for any number of tokens.

`torch.export` records these functions where the scan back end is "reference". The program then needs no operator of
ours, neither in PyTorch nor in ONNX; the loop over tokens is one operator, whose body is recorded once.

Legend: B batch, K scan directions, L tokens, D channels, N state size, W convolution taps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import WeakIdKeyDictionary, scan_loop
from .scan_inputs import ScanInputs, divisor


def conv(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D) by direction, SiLU included."""
    weight, bias = _float(weight, x.dtype), _float(bias, x.dtype)
    rows, (batch, length, _), (directions, _, taps) = _rows(orders, x.shape[0]), x.shape, weight.shape
    scanned = x.flatten(0, 1).index_select(0, rows.of_image).unflatten(0, (directions, batch, length))
    padded = F.pad(scanned, (0, 0, taps - 1, 0))
    out = bias[:, None, None]
    for j, tap in enumerate(weight[:, None, None].unbind(-1)):
        out = out + padded.narrow(2, j, length) * tap
    tokens = F.silu(out).flatten(0, 2).index_select(0, rows.tokens).unflatten(0, (directions, batch, length))
    return tokens.transpose(0, 1)


def scan(inputs: ScanInputs, softplus: bool, reduce: str) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the final state (B, K, D, N); computes in float32, or in float64 if u is float64."""
    out_dtype = inputs.u.dtype
    dtype = out_dtype if out_dtype.itemsize >= 4 else torch.float32
    u, delta, B, C = (_float(inputs[i], dtype).transpose(0, 1) for i in (0, 1, 3, 4))  # (K, B, L, .)
    A, D, delta_bias = (_float(x, dtype) for x in (inputs.A, inputs.D, inputs.delta_bias))
    directions, batch, length, channels = u.shape
    rows, states = _rows(inputs.orders, batch), A.shape[2]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None, None]
    if softplus:
        delta = F.softplus(delta)
    tokens = torch.cat([x.flatten(0, 2) for x in (delta, delta * u, B, C)], 1)
    steps = tokens.index_select(0, rows.steps).unflatten(0, (length, batch, directions))
    y, state = _recurrence.get()(*steps.split([channels, channels, states, states], 3), A)
    y = y.flatten(0, 2).index_select(0, rows.tokens_of_steps).unflatten(0, (directions, batch, length))
    if D is not None:
        y = y + D[:, None, None] * u
    return _float(y.sum(0) / divisor(inputs, reduce), out_dtype), state


def token_loop(delta: Tensor, product: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence of the scan: `h_t = exp(delta_t A) h_{t-1} + product_t B_t`, `y_t = <C_t, h_t>`.

    Args:
        delta, product: (L, B, K, D), in the order of the steps; `product` is delta * u.
        B, C: (L, B, K, N), in the order of the steps.
        A: (K, D, N).

    Returns:
        y (L, B, K, D) and the final state (B, K, D, N).
    """
    first = delta.new_zeros(delta.shape[1], A.shape[0], A.shape[2], A.shape[1])
    # every operator of a step costs: shapes are made once, for all steps
    steps = [delta.unsqueeze(3), product.unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3)]
    state, y = scan_loop(_step, first, steps, A.transpose(1, 2).contiguous())
    return y.squeeze(3), state.transpose(2, 3)


def _step(state: Tensor, delta: Tensor, product: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """One token of the recurrence.

    Args:
        state: (B, K, N, D), before the token.
        delta, product: (B, K, 1, D).
        B: (B, K, N, 1).
        C: (B, K, 1, N).
        A: (K, N, D).

    Returns:
        the state after the token, and y (B, K, 1, D).
    """
    state = torch.exp(delta * A) * state + product * B
    return state, C @ state


Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_recurrence: ContextVar[Recurrence] = ContextVar("recurrence", default=token_loop)


@contextmanager
def recurrence(function: Recurrence) -> Iterator[None]:
    """Record `function` in the place of `token_loop` inside a `with` block, as for an operator of a runtime."""
    token = _recurrence.set(function)
    try:
        yield
    finally:
        _recurrence.reset(token)


class _Rows(NamedTuple):
    """Where the rows of flattened tensors come from; int64, of K B L numbers each.

    Attributes:
        of_image: of (K, B, L) in the order of the steps, from (B, L) in token order.
        tokens: of (K, B, L) in token order, from (K, B, L) in the order of the steps.
        steps: of (L, B, K) in the order of the steps, from (K, B, L) in token order.
        tokens_of_steps: of (K, B, L) in token order, from (L, B, K) in the order of the steps.
    """

    of_image: Tensor
    tokens: Tensor
    steps: Tensor
    tokens_of_steps: Tensor


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # orders -> batch -> _Rows: all blocks of a model share them


def _rows(orders: Tensor, batch: int) -> _Rows:
    known = _known.setdefault(orders, {})
    if str(batch) not in known:  # a symbol's name: comparing symbols would restrict the program
        known[str(batch)] = _make_rows(orders, batch)
    return known[str(batch)]


def _make_rows(orders: Tensor, batch: int) -> _Rows:
    (directions, length), device = orders.shape, orders.device
    b = torch.arange(batch, device=device)[:, None]
    k = torch.arange(directions, device=device)[:, None, None]
    t = torch.arange(length, device=device).expand(orders.shape)
    inverse = torch.zeros_like(orders).scatter(1, orders, t)[:, None]
    of_image = b * length + orders[:, None]  # (K, B, L)
    start = k * batch * length
    return _Rows(
        of_image.flatten(),
        (start + b * length + inverse).flatten(),
        (start + of_image).permute(2, 1, 0).flatten(),
        (inverse * batch * directions + b * directions + k).flatten(),
    )


def _float(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is None or x.dtype == dtype else x.to(dtype)
