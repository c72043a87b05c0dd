"""SiLU gate in Triton, forward and backward in one pass each; rows may be strided, as slices of a projection are."""

import triton
import triton.language as tl
from torch import Tensor

from ..layout import as_rows
from .device import device_guard

LAUNCHES_COST = True
ROWS, COLUMNS = 8, 256  # per program


@triton.jit
def _tile(count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return row[:, None], column[None, :], (row < count)[:, None] & (column < width)[None, :]


@triton.jit(do_not_specialize=["count"])
def _forward(x, z, out, count, width, row_x, row_z, row_out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, mask = _tile(count, width, ROWS, COLUMNS)
    value = tl.load(x + row * row_x + column, mask, 0).to(tl.float32)
    gate = tl.load(z + row * row_z + column, mask, 0).to(tl.float32)
    result = value * gate / (1 + tl.exp(-gate))
    tl.store(out + row * row_out + column, result.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["count"])
def _backward(
    grad, x, z, grad_x, grad_z,
    count, width, row_grad, row_x, row_z, row_grad_x, row_grad_z,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, mask = _tile(count, width, ROWS, COLUMNS)
    g = tl.load(grad + row * row_grad + column, mask, 0).to(tl.float32)
    value = tl.load(x + row * row_x + column, mask, 0).to(tl.float32)
    gate = tl.load(z + row * row_z + column, mask, 0).to(tl.float32)
    sigmoid = 1 / (1 + tl.exp(-gate))
    to_x = g * gate * sigmoid
    to_z = g * value * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(grad_x + row * row_grad_x + column, to_x.to(grad_x.dtype.element_ty), mask)
    tl.store(grad_z + row * row_grad_z + column, to_z.to(grad_z.dtype.element_ty), mask)


def _run(kernel, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    width = outputs[0].shape[-1]
    count = outputs[0].numel() // width
    tensors, steps = zip(*(as_rows(x) for x in inputs))
    steps += tuple(x.stride(-2) for x in outputs)
    grid = (triton.cdiv(count, ROWS), triton.cdiv(width, COLUMNS))
    kernel[grid](*tensors, *outputs, count, width, *steps, ROWS=ROWS, COLUMNS=COLUMNS)


@device_guard
def gate_forward(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`, contiguous; x and z (..., C)."""
    out = x.new_empty(x.shape)
    _run(_forward, (x, z), (out,))
    return out


@device_guard
def gate_backward(
    grad: Tensor, x: Tensor, z: Tensor, grad_x: Tensor | None = None, grad_z: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and z; see `GateKernels`."""
    grads = tuple(x.new_empty(x.shape) if to is None else to for to in (grad_x, grad_z))
    _run(_backward, (grad, x, z), grads)
    return grads
