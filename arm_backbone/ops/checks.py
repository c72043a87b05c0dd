"""Checks of the operators' tensors, before any kernel reads their memory."""

import torch
from torch import Tensor

STRIDED = torch.strided
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
CAST_FLOATS = FLOATS - {torch.float64}  # that autocast converts


def check_tensors(shapes: dict[str, tuple[Tensor, tuple[int, ...]]], given: tuple[str, ...]) -> None:
    """Check that all tensors are real, dense and on one device, and that each has its shape.

    Args:
        shapes: by name, a tensor (None is skipped) and the shape that it must have.
        given: names of the tensors that determine the shapes, for the message.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    device = next(iter(shapes.values()))[0].device
    for name, (tensor, shape) in shapes.items():
        if tensor is None or (_is_real(tensor) and tensor.shape == shape and tensor.device == device):
            continue
        check_real(name, tensor)
        if tensor.shape != shape:
            others = " and ".join(f"{other} {tuple(shapes[other][0].shape)}" for other in given)
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with {others} it must be {tuple(shape)}")
        first = next(iter(shapes))
        raise ValueError(f"{name} is on {tensor.device}, but {first} on {device}; move both to one device")


def check_real(name: str, tensor: Tensor) -> None:
    """Check that a tensor holds numbers that every back end computes with.

    Raises:
        ValueError: for what is not a dense tensor of float16, bfloat16, float32 or float64.
    """
    if _is_real(tensor):
        return
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be a real floating-point tensor (16, 32 or 64 bits), not {tensor.dtype}; convert it first"
        )
    raise ValueError(f"{name} must be a dense tensor, not {tensor.layout}; give its to_dense()")


def _is_real(tensor: Tensor) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype in FLOATS and tensor.layout is STRIDED


def check_positive(**sizes: int) -> None:
    """Check sizes that may not be 0.

    Raises:
        ValueError: naming the size.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"the tensors have {size} {name}; give at least 1")
