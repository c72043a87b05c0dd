"""Where a chain of operators may run as one autograd function, which keeps less for the backward than each would."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .scan import triton_unavailable


def fuses(*tensors: Tensor | None) -> bool:
    """Whether Triton kernels may be called on tensors without the dispatcher's knowing.

    Not under torch.compile, torch.func or a mode that looks at every operator (FLOP counters, selective checkpoints,
    tensors without data), and not for subclasses of tensors.
    """
    if torch.compiler.is_compiling():
        return False
    first = tensors[0]
    return (
        triton_unavailable(first.device) is None
        and first.dtype != torch.float64
        and first.numel() > 0
        and all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
    )


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
