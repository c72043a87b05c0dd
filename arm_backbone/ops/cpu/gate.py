"""SiLU gate on a CPU: calls of the compiled kernels."""

import torch
from torch import Tensor

from ..layout import as_rows
from .library import Gate, call, pointer

LAUNCHES_COST = False


def gate_forward(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`, contiguous; x and z (..., C), both float32 or both bfloat16."""
    out = x.new_empty(x.shape)
    _run(None, x, z, out, None)
    return out


def gate_backward(
    grad: Tensor, x: Tensor, z: Tensor, grad_x: Tensor | None = None, grad_z: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and z; see `GateKernels`."""
    grads = tuple(x.new_empty(x.shape) if to is None else to for to in (grad_x, grad_z))
    _run(grad, x, z, *grads)
    return grads


def _run(grad: Tensor | None, x: Tensor, z: Tensor, out: Tensor, grad_z: Tensor | None) -> None:
    inputs = [(None, 0) if tensor is None else as_rows(tensor) for tensor in (grad, x, z)]
    rows = [*(row for _, row in inputs), out.stride(-2), 0 if grad_z is None else grad_z.stride(-2)]
    width = x.shape[-1]
    tensors = (*(tensor for tensor, _ in inputs), out, grad_z)
    call("gate", Gate(x.numel() // width, width, *rows, int(x.dtype == torch.bfloat16), *map(pointer, tensors)))
