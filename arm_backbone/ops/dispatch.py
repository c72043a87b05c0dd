"""Where kernels may be called without the dispatcher: chains of operators that are one autograd function then."""

import functools
import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .cpu import kernels as native
from .pytorch import scan as scan_torch


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


OLDEST_TRITON = (3, 3)  # its language has what the kernels say: tuples, gather

BACKENDS = ("reference", "torch", "cpu", "triton", "mamba_ssm")


def triton_unavailable(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device; None if they can. Its interpreter (for tests) runs on a CPU."""
    if device.type != "cuda" and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"it scans tensors on a GPU, and these are on {device}"
    version = _triton_version()
    if version is None:
        return "triton is not installed; pip install triton"
    if version < OLDEST_TRITON:
        return f"triton is older than {'.'.join(map(str, OLDEST_TRITON))} (torch 2.7); pip install -U torch"
    return None


@functools.cache
def _triton_version() -> tuple[int, ...] | None:
    if find_spec("triton") is None:
        return None
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a back end cannot scan tensors of a device and type, with the remedy; None if it can."""
    if backend in ("reference", "torch"):
        return None
    if dtype == torch.float64:
        return "it computes in float32, and these are float64; take backend='torch'"
    if backend == "cpu":
        return f"it scans tensors on a CPU, and these are on {device}" if device.type != "cpu" else native.unavailable()
    if backend == "triton":
        return triton_unavailable(device)
    if device.type != "cuda":
        return f"it scans tensors on an NVIDIA GPU, and these are on {device}"
    return None if find_spec("mamba_ssm") else "mamba-ssm is not installed; pip install mamba-ssm --no-build-isolation"


@torch.compiler.assume_constant_result  # a choice of the environment, not of the data
def resolve_backend(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> str:
    """Name of the back end that scans tensors of a device and type: the argument, else the variable ARM_SCAN_BACKEND,
    else the fastest there is.

    Raises:
        ValueError: for a name that is unknown or cannot run here; it says why and what to install.
    """
    source = "backend"
    if backend == "auto":
        source, backend = "ARM_SCAN_BACKEND", os.environ.get("ARM_SCAN_BACKEND", "auto")
    if backend == "auto":
        return _fastest(device, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"{source}={backend!r} is no scan back end; give auto, {', '.join(BACKENDS)}")
    reason = unavailable(backend, device, dtype)
    if reason is not None:
        raise ValueError(f"{source}={backend!r} cannot run: {reason}")
    return backend


_warned = False


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    global _warned
    fast = "cpu" if device.type == "cpu" else "triton"
    reason = unavailable(fast, device, dtype)
    if reason is None:
        return fast
    if device.type in ("cpu", "cuda") and dtype != torch.float64 and not _warned:
        _warned = True
        warnings.warn(f"Selective scan in plain PyTorch, 5 to 10 times slower: {reason}", stacklevel=2)
    return "torch"


def _kernels(backend: str) -> ModuleType:
    """The module with a back end's scan_forward and scan_backward."""
    if backend == "triton":
        from .triton import scan as scan_triton  # imports triton, which not every machine has

        return scan_triton
    return scan_torch if backend == "torch" else native


def _saved_states(backend: str, length: int) -> int:
    """States that a back end's forward saves for its backward."""
    if backend == "triton":
        return _kernels(backend).saved_states(length)
    size = native.segment_length() if backend == "cpu" else scan_torch.SEGMENT
    return (length + size - 1) // size + 1
