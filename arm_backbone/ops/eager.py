"""Where kernels may be called without the dispatcher: chains of operators that are one autograd function then."""

import functools
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import native
from .scan import triton_unavailable


def fused_backend(first: Tensor, *others: Tensor | None, dtype: torch.dtype) -> str | None:
    """Name of the back end, "triton" or "cpu", whose kernels may compute in `dtype` on tensors without the dispatcher's
    knowing; None if there is none.

    Not under torch.compile, tracing, torch.func or a mode that looks at every operator (FLOP counters, selective
    checkpoints, tensors without data), and not for subclasses of tensors.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    eager = (
        all(t is None or type(t) in (Tensor, nn.Parameter) for t in (first, *others))
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
        and all(t is None or t.device == first.device for t in others)
        and first.numel() > 0
    )
    if not eager or first.dtype == torch.float64:
        return None
    if triton_unavailable(first.device) is None:
        return "triton"
    here = first.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return "cpu" if here and native.unavailable() is None else None


def row_kernels(name: str, first: Tensor, *others: Tensor | None, dtype: torch.dtype) -> ModuleType | None:
    """The module with kernels for rows of tensors, as `fused_backend`: that of Triton with this name, or the CPU's."""
    backend = fused_backend(first, *others, dtype=dtype) if first.ndim > 1 else None
    if backend == "triton":
        return import_module(f".{name}", __package__)  # imports triton, which not every machine has
    return native if backend else None


def on_its_device(function: Callable) -> Callable:
    """A function that launches Triton kernels, on its first tensor's GPU: Triton itself takes the current one."""

    @functools.wraps(function)
    def run(first: Tensor, *args, **kwargs):
        if not first.is_cuda or first.device.index == torch.cuda.current_device():
            return function(first, *args, **kwargs)
        with torch.cuda.device(first.device):
            return function(first, *args, **kwargs)

    return run


def computing_type(x: Tensor) -> torch.dtype:
    """Type in which products of x with weights are computed: autocast's, or its own."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # autocast knows no meta tensors
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a module is `kind`'s forward and nothing else: no subclass, no hooks, no other `forward`."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    changed = any(own) or "forward" in vars(module) or nn.modules.module._has_any_global_hook()
    return type(module) is kind and not changed
