"""Launches Triton kernels on the device of their tensors."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def device_guard(function: Callable) -> Callable:
    """Decorator: launch on the first argument's GPU (Triton launches on the current device)."""

    @functools.wraps(function)
    def run(first: Tensor | tuple, *args, **kwargs):
        device = first.device if isinstance(first, Tensor) else first[0].device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(first, *args, **kwargs)
        with torch.cuda.device(device):
            return function(first, *args, **kwargs)

    return run
