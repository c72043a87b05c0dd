"""Launching Triton kernels on the device of their tensors."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def on_its_device(function: Callable) -> Callable:
    """A function that launches Triton kernels, on its first tensor's GPU: Triton itself takes the current one."""

    @functools.wraps(function)
    def run(first: Tensor, *args, **kwargs):
        if not first.is_cuda or first.device.index == torch.cuda.current_device():
            return function(first, *args, **kwargs)
        with torch.cuda.device(first.device):
            return function(first, *args, **kwargs)

    return run
