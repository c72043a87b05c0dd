"""Launches Triton kernels on the GPU of their tensors."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


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
