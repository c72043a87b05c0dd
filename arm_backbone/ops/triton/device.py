"""Launches Triton kernels on the GPU of their tensors."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

MAX_GRID = 65535  # programs along the second and third axis of a launch


def check_grid(rows: int) -> None:
    """Check that one launch can cover K directions of B images.

    Raises:
        ValueError: for too many.
    """
    if rows > MAX_GRID:
        raise ValueError(f"{rows} sequences (images x directions) are more than {MAX_GRID}; split the batch")


def device_guard(function: Callable) -> Callable:
    """Decorator: launch on the GPU of the first argument, a tensor or `ScanInputs`; Triton uses the current device."""

    @functools.wraps(function)
    def run(first: Tensor | tuple, *args, **kwargs):
        device = (first[0] if isinstance(first, tuple) else first).device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(first, *args, **kwargs)
        with torch.cuda.device(device):
            return function(first, *args, **kwargs)

    return run
