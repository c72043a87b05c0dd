"""Decides which back end runs; no other file knows the back ends.

| back end | runs on | what it is |
| --- | --- | --- |
| `reference` | any device and dtype | a loop over tokens, differentiated by autograd; the oracle of the tests |
| `torch` | any device and dtype | plain PyTorch in segments, folder `pytorch/` |
| `cpu` | a CPU | compiled C++, folder `cpu/` |
| `triton` | a GPU | Triton kernels, folder `triton/` |
| `mamba_ssm` | an NVIDIA GPU | the CUDA kernel of the mamba-ssm package |

The folders offer the same functions under the same file names; the Protocols below are their signatures. To add a back
end, write such a folder, name it in `_FOLDERS`, `BACKENDS` and `unavailable`, and say in `_fastest`, `conv_kernels` and
`_direct` when it is preferred. Back ends are imported when they are first used. While torch.export records a program
with the back end `reference`, `program.py` runs in its place.
"""

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from .library import derivative_needed, is_eager, raise_no_derivative
from .scan_inputs import ScanInputs

BACKENDS = ("reference", "torch", "cpu", "triton", "mamba_ssm")
OLDEST_TRITON = (3, 3)  # the kernels use tuples and gather
_FOLDERS = {"torch": "pytorch", "cpu": "cpu", "triton": "triton"}


class ScanKernels(Protocol):
    """`scan.py` of a back end."""

    def saved_states(self, length: int) -> int:
        """Number of states that a forward over `length` tokens keeps for its backward."""

    def scan_forward(
        self, inputs: ScanInputs, softplus: bool, reduce: str, keep: bool, last: bool, gate: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """y (B, L, D), times silu(gate) if given, and states (n, B, K, N, D): with `keep` those for the backward, with
        `last` the final one."""

    def scan_backward(
        self, grad_y: Tensor, inputs: ScanInputs, softplus: bool, reduce: str, states: Tensor, in_place: bool
    ) -> list[Tensor]:
        """Gradients of the first seven inputs, also for a D or delta_bias that is None; they share no memory.

        Args:
            states: from a forward with `keep`.
            in_place: overwrite u and delta with their gradients; both must be laid out by direction.
        """


class DifferentiableScan(Protocol):
    """`reference.py` and `mamba_ssm.py`: a forward that autograd differentiates."""

    def scan(self, inputs: ScanInputs, softplus: bool, reduce: str) -> tuple[Tensor, Tensor]:
        """y (B, L, D) and the final state (B, K, D, N)."""


class ConvKernels(Protocol):
    """`conv.py` of a back end."""

    def supports_conv(self, taps: int) -> bool:
        """Whether the kernels support this number of taps."""

    def conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
        """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""

    def conv_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""


class GateKernels(Protocol):
    """`gate.py` of a back end.

    Attributes:
        LAUNCHES_COST: whether fewer operators are worth a copy.
    """

    LAUNCHES_COST: bool

    def gate_forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`x * silu(z)`, contiguous; x and z (..., C) of one dtype."""

    def gate_backward(
        self, grad: Tensor, x: Tensor, z: Tensor, grad_x: Tensor | None = None, grad_z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and z.

        Args:
            grad_x, grad_z: tensors with evenly spaced rows of contiguous channels to write into, or None for new ones;
                grad_x may be `grad`.
        """


class NormKernels(Protocol):
    """`norm.py` of a back end: LayerNorm (`centered`) or RMSNorm, of x or of x + branch."""

    def supports_norm(self, x: Tensor, branch: Tensor | None, centered: bool, dtype: torch.dtype) -> bool:
        """Whether the kernels support these input dtypes and the output dtype `dtype`, faster than PyTorch."""

    def norm_forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centered: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x + branch in x's dtype, its norm in `dtype`, and the mean and scale of each row in float32."""

    def norm_backward(
        self,
        grad: Tensor,
        grad_total: Tensor | None,
        total: Tensor,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
        centered: bool,
        branch_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Gradients of x, of the branch in `branch_dtype` (None without one), of weight and of bias."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a back end cannot scan tensors of this device and dtype, and the remedy; None if it can."""
    if backend in ("reference", "torch"):
        return None
    if dtype == torch.float64:
        return "it computes in float32, and these tensors are float64; use backend='torch'"
    if backend == "cpu":
        if device.type != "cpu":
            return f"it scans tensors on a CPU, but these are on {device}; use 'auto'"
        return _part("cpu", "library").unavailable()
    if backend == "triton":
        return _triton_unavailable(device)
    if device.type != "cuda":
        return f"it scans tensors on an NVIDIA GPU, but these are on {device}; use 'auto'"
    return _mamba_ssm_unavailable()


@functools.cache
def _mamba_ssm_unavailable() -> str | None:
    """Why the kernel of mamba-ssm cannot be called, and the remedy; None if it can.

    Versions after 2.3 build it only if asked: the package is then there and can be imported, without the kernel.
    """
    build = (
        "MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps --no-cache-dir "
        "--force-reinstall mamba-ssm, or use 'triton', which needs no build"
    )
    if find_spec("mamba_ssm") is None:
        return f"mamba-ssm is not installed; {build}"
    try:
        interface = import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception as error:  # its imports load compiled code of several packages
        return f"mamba-ssm cannot be imported ({' '.join(str(error).split())}); {build}"
    if getattr(interface, "selective_scan_cuda", None) is None:
        return f"mamba-ssm was built without its kernel selective_scan_cuda; {build}"
    return None


def _triton_unavailable(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device; None if they can. Its interpreter (for tests) runs on a CPU."""
    if device.type != "cuda" and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"it scans tensors on a GPU, but these are on {device}; use 'auto'"
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
    return tuple(int(part) for part in import_module("triton").__version__.split(".")[:2])


class _Chosen(threading.local):
    """The back ends of the `scan_backend` blocks that this thread is in, the innermost last."""

    def __init__(self) -> None:
        self.names: dict[object, str] = {}


_chosen = _Chosen()
_chosen_anywhere: dict[object, str] = {}  # in any thread, the block that was entered last at the end


@contextmanager
def scan_backend(name: str) -> Iterator[None]:
    """Choose the back end of all scans inside a `with` block; it overrides ARM_SCAN_BACKEND.

    It holds for the thread, and for threads without a block of their own (autograd's, DataParallel's). If the backward
    recomputes the forward (`with_cp`), run it inside the block, too.

    Args:
        name: one of `BACKENDS`, or "auto" for the fastest.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: inside a function that is being compiled or exported; put the block around it.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("scan_backend has no effect inside a compiled function; put the block around its call")
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"scan_backend({name!r}) is not a scan back end; give auto, {', '.join(BACKENDS)}")
    block, own = object(), _chosen.names
    own[block] = _chosen_anywhere[block] = name
    try:
        yield
    finally:
        del own[block], _chosen_anywhere[block]


def _selected() -> str | None:
    """The back end of the innermost `scan_backend` block, in this thread if it is in one; None outside."""
    return next(reversed([*_chosen_anywhere.values(), *_chosen.names.values()]), None)


@torch.compiler.assume_constant_result  # depends on the environment, not on the data
def resolve_backend(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> str:
    """Name of the back end that scans tensors of this device and dtype.

    The argument takes precedence over `scan_backend`, which takes precedence over the environment variable
    ARM_SCAN_BACKEND (empty: unset). "auto" is the fastest back end that can run.

    Raises:
        ValueError: for a back end that is unknown or cannot run here; the message says why, and what to install.
    """
    source = "backend"
    if backend == "auto" and (selected := _selected()) is not None:
        source, backend = "scan_backend", selected
    elif backend == "auto":
        source, backend = "ARM_SCAN_BACKEND", os.environ.get("ARM_SCAN_BACKEND") or "auto"
    if backend == "auto":
        return _fastest(device, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"{source}={backend!r} is not a scan back end; give auto, {', '.join(BACKENDS)}")
    reason = unavailable(backend, device, dtype)
    if reason is not None:
        raise ValueError(f"{source}={backend!r} cannot run: {reason}")
    return backend


def check_environment(device: torch.device) -> None:
    """Check the variables ARM_SCAN_BACKEND and ARM_CPU_ISA before anything is computed; empty means unset.

    Args:
        device: where the scans will run.

    Raises:
        ValueError: for a value that is unknown or cannot run here.
    """
    resolve_backend(device, torch.float32)
    cpu = _part("cpu", "library")
    isa = os.environ.get("ARM_CPU_ISA") or cpu.ISAS[0]
    if isa not in cpu.ISAS:
        raise ValueError(f"ARM_CPU_ISA={isa!r} is not an instruction set; give one of {', '.join(cpu.ISAS)}")
    if cpu.unavailable() is None:
        cpu.kernels()


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    fast = "cpu" if device.type == "cpu" else "triton"
    reason = unavailable(fast, device, dtype)
    if reason is None:
        return fast
    if device.type in ("cpu", "cuda") and dtype != torch.float64:
        _warn_slow(reason)
    return "torch"


@functools.cache
def _warn_slow(reason: str) -> None:
    warnings.warn(f"Selective scan in plain PyTorch, about 10 times slower: {reason}", stacklevel=2)


@functools.cache
def _part(backend: str, part: str):
    """Import the module `part` of a back end's folder."""
    return import_module(f".{_FOLDERS[backend]}.{part}", __package__)


def scan_kernels(backend: str) -> ScanKernels:
    """Scan kernels of the back end "torch", "cpu" or "triton"."""
    return _part(backend, "scan")


def differentiable_scan(backend: str) -> DifferentiableScan | None:
    """The scan of a back end that autograd differentiates ("reference", "mamba_ssm"); None for the others."""
    return None if backend in _FOLDERS else import_module(f".{backend}", __package__)


def plain_functions(*tensors: Tensor | None, backend: str = "auto"):
    """The functions in plain PyTorch, where these must run in the place of registered operators; else None.

    `reference.py` for a derivative of these tensors that only it can give: forward-mode differentiation and torch.func
    (`derivative_needed`). `program.py` while torch.export records a program with the back end "reference".

    Raises:
        NotImplementedError: if the back end is not "torch" or "reference".
    """
    if torch.compiler.is_exporting() and resolve_backend(tensors[0].device, tensors[0].dtype, backend) == "reference":
        return import_module(".program", __package__)
    kind = derivative_needed(tensors)
    if kind is None:
        return None
    if resolve_backend(tensors[0].device, tensors[0].dtype, backend) not in ("reference", "torch"):
        raise_no_derivative(kind)
    return import_module(".reference", __package__)


def conv_kernels(x: Tensor, taps: int) -> ConvKernels:
    """The fastest convolution for x and this many taps."""
    backend = "cpu" if x.device.type == "cpu" else "triton"
    if unavailable(backend, x.device, x.dtype) is None and _part(backend, "conv").supports_conv(taps):
        return _part(backend, "conv")
    return _part("torch", "conv")


def _direct(*tensors: Tensor | None, dtype: torch.dtype) -> str | None:
    """Back end ("triton" or "cpu") whose kernels can be called on these tensors without PyTorch's dispatcher, or None.

    Args:
        dtype: of the computation.
    """
    first = tensors[0]
    if not is_eager(tensors) or any(t is not None and t.device != first.device for t in tensors):
        return None
    if first.numel() == 0 or first.dtype == torch.float64:
        return None
    if unavailable("triton", first.device, first.dtype) is None:
        return "triton"
    on_cpu = first.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return "cpu" if on_cpu and unavailable("cpu", first.device, first.dtype) is None else None


def direct_gate(x: Tensor, z: Tensor, *others: Tensor | None) -> GateKernels | None:
    """Gate kernels that can be called directly on x and z, or None.

    Args:
        others: further tensors of the same autograd function.
    """
    if x.ndim < 2 or x.dtype != z.dtype or x.shape != z.shape:
        return None
    backend = _direct(x, z, *others, dtype=x.dtype)
    return _part(backend, "gate") if backend else None


def direct_norm(
    x: Tensor, branch: Tensor | None, *others: Tensor | None, centered: bool, dtype: torch.dtype
) -> NormKernels | None:
    """Norm kernels that can be called directly on x and branch with output dtype `dtype`, or None.

    Args:
        others: further tensors of the same autograd function.
    """
    backend = _direct(x, branch, *others, dtype=dtype) if x.ndim > 1 else None
    kernels = _part(backend, "norm") if backend else None
    return kernels if kernels and kernels.supports_norm(x, branch, centered, dtype) else None


def direct_inner(*tensors: Tensor, taps: int, dtype: torch.dtype) -> tuple[ConvKernels, ScanKernels] | None:
    """Convolution and scan kernels of the chosen scan back end if they can be called directly, or None."""
    backend = _direct(*tensors, dtype=dtype)
    if backend is None or backend != resolve_backend(tensors[0].device, dtype):
        return None
    conv = _part(backend, "conv")
    return (conv, _part(backend, "scan")) if conv.supports_conv(taps) else None
