"""SiLU gate on a CPU: calls of the compiled kernels."""

import torch
from torch import Tensor

from ..layout import as_rows
from .library import Gate, call, pointer


def gate_forward(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`, contiguous; x and z (..., C), both float32 or both bfloat16."""
    out = x.new_empty(x.shape)
    _run(None, x, z, out, None)
    return out


def gate_backward(grad: Tensor, x: Tensor, z: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and z; with `in_place` that of x overwrites the contiguous `grad`."""
    grad_x, grad_z = grad if in_place else x.new_empty(x.shape), z.new_empty(z.shape)
    _run(grad, x, z, grad_x, grad_z)
    return grad_x, grad_z


def _run(grad: Tensor | None, x: Tensor, z: Tensor, out: Tensor, grad_z: Tensor | None) -> None:
    width = x.shape[-1]
    (grad, row_grad), (x, row_x), (z, row_z) = (None, 0) if grad is None else as_rows(grad), as_rows(x), as_rows(z)
    sizes = (x.numel() // width, width, row_grad, row_x, row_z, int(x.dtype == torch.bfloat16))
    call("gate", Gate(*sizes, *(pointer(t) for t in (grad, x, z, out, grad_z))))
