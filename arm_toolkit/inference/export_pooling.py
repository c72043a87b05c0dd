"""Pooling in operators that hold for maps of any size, while a program is recorded.

PyTorch's own pooling asks whether the size of a map divides, so a program would hold for sizes with one answer only.
ONNX has average pooling with windows of one size only; those of adaptive pooling differ unless the size divides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AnySizePooling(TorchFunctionMode):
    """Inside a `with` block, poolings in `OWN` take the form of this module; all other functions are as they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return OWN.get(function, function)(*args, **kwargs or {})


def adaptive_mean(x: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """`F.adaptive_avg_pool2d` as two matrix products."""
    height, width = (output_size,) * 2 if isinstance(output_size, int) else output_size
    return _windows(x.shape[2], height, x) @ x @ _windows(x.shape[3], width, x).t()


def _windows(size: int, number: int, like: Tensor) -> Tensor:
    """(number, size): row i averages the positions from floor(i size / number) to ceil((i + 1) size / number)."""
    i = torch.arange(number, device=like.device).unsqueeze(1)
    first, end = i * size // number, ((i + 1) * size + number - 1) // number
    position = torch.arange(size, device=like.device)
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first)


def maximum(
    x: Tensor,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """`F.max_pool2d`, for windows that do not overlap and for windows of one pixel."""
    stride = kernel_size if stride is None else stride
    plain = (padding, dilation, return_indices) == (0, 1, False)
    if plain and kernel_size == 1:
        return x[:, :, ::stride, ::stride]
    if plain and ceil_mode and kernel_size == stride:
        below, right = ((stride - size % stride) % stride for size in x.shape[2:])
        return F.max_pool2d(F.pad(x, (0, right, 0, below), value=-torch.inf), kernel_size, stride)
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


OWN = {F.adaptive_avg_pool2d: adaptive_mean, F.max_pool2d: maximum}
