"""SiLU gate in plain PyTorch, with which the tests compare the other back ends."""

import torch.nn.functional as F
from torch import Tensor


def gate_forward(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`."""
    return x * F.silu(z)


def gate_backward(
    grad: Tensor, x: Tensor, z: Tensor, grad_x: Tensor | None = None, grad_z: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and z; see `GateKernels`."""
    sigmoid = z.sigmoid()
    to_z = grad * x * sigmoid * (1 + z * (1 - sigmoid))
    to_x = grad * (z * sigmoid)
    return to_x if grad_x is None else grad_x.copy_(to_x), to_z if grad_z is None else grad_z.copy_(to_z)
