"""SiLU gate in plain PyTorch, with which the tests compare the other back ends."""

import torch.nn.functional as F
from torch import Tensor


def gate_forward(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`."""
    return x * F.silu(z)


def gate_backward(grad: Tensor, x: Tensor, z: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and z; with `in_place` that of x overwrites `grad`."""
    sigmoid = z.sigmoid()
    grad_z = grad * x * sigmoid * (1 + z * (1 - sigmoid))
    gate = z * sigmoid
    return grad.mul_(gate) if in_place else grad * gate, grad_z
