"""Loads the compiled CPU kernels (csrc/) and calls them.

`pip install` builds them, with the system's C++ compiler or with one that it gets from PyPI. Their interface is plain
C, so one build works with every version of Python and torch. The structures below mirror csrc/kernels.h.
"""

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).parent / "libarm_cpu.so"
ISAS = ("plain", "avx2", "avx512")


class Scan(Structure):
    _fields_ = [
        (name, c_int64)
        for name in (
            *("batch", "directions", "length", "channels", "states"),
            *("tokens_last", "softplus", "divisor", "shared_u", "half", "half_BC", "row_B", "row_C"),
        )
    ] + [(name, c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias", "orders")]


class ScanForward(Structure):
    _fields_ = [("scan", Scan), ("y", c_void_p), ("saved", c_void_p), ("keep", c_int64)]
    _fields_ += [("gate", c_void_p), ("row_gate", c_int64)]


class ScanBackward(Structure):
    _fields_ = [("scan", Scan)] + [
        (name, c_void_p)
        for name in (
            *("grad_y", "saved", "grad_u", "grad_delta"),
            *("grad_B", "grad_C", "grad_A", "grad_D", "grad_delta_bias"),
        )
    ]
    _fields_ += [("parts", c_int64)]


class Conv(Structure):
    _fields_ = [(name, c_int64) for name in ("batch", "directions", "length", "channels", "taps", "row", "half")] + [
        (name, c_void_p)
        for name in ("x", "weight", "bias", "orders", "out", "grad", "grad_x", "grad_weight", "grad_bias")
    ]


class Gate(Structure):
    _fields_ = [(name, c_int64) for name in ("rows", "channels")]
    _fields_ += [(name, c_int64) for name in ("row_grad", "row_x", "row_z", "row_out", "row_grad_z", "half")]
    _fields_ += [(name, c_void_p) for name in ("grad", "x", "z", "out", "grad_z")]


class Norm(Structure):
    _fields_ = [(name, c_int64) for name in ("rows", "channels", "centered", "row_x", "row_branch", "half")] + [
        (name, c_void_p) for name in ("x", "branch", "weight", "bias", "total", "out", "mean", "scale")
    ]
    _fields_ += [("eps", c_float)]


class NormBackward(Structure):
    _fields_ = [
        (name, c_int64) for name in ("rows", "channels", "centered", "row_grad", "row_total", "row_x", "half")
    ] + [
        (name, c_void_p)
        for name in ("grad", "grad_total", "x", "weight", "mean", "scale", "grad_x", "grad_branch", "sums")
    ]


_STRUCTURES = (ScanForward, ScanBackward, Conv, Gate, Norm, NormBackward)


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run here, and the remedy; None if they can."""
    if not LIBRARY.is_file():
        return "the CPU kernels are not built; build them: pip install -e ."
    again = "rebuild it: pip install -e ."
    try:
        library = _library()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded ({error}); {again}"
    if any(library.arm_layout(i) != ctypes.sizeof(structure) for i, structure in enumerate(_STRUCTURES)):
        return f"{LIBRARY.name} was built from other sources; {again}"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.arm_kernels.restype = c_void_p
    library.arm_kernels.argtypes = library.arm_layout.argtypes = [c_int64]
    library.arm_layout.restype = c_int64
    library.arm_parts.restype = library.arm_segment.restype = library.arm_best_isa.restype = c_int64
    library.arm_parts.argtypes = [c_void_p, c_int64, c_int64, c_int64]
    library.arm_scan_forward.argtypes = [c_void_p, POINTER(ScanForward), c_int64, c_void_p]
    library.arm_scan_backward.argtypes = [c_void_p, POINTER(ScanBackward), c_int64, c_void_p]
    library.arm_conv.argtypes = [c_void_p, POINTER(Conv), c_int64, c_int64, c_void_p]
    library.arm_wrong_order.restype = c_int64
    library.arm_wrong_order.argtypes = [c_void_p, c_int64, c_int64]
    library.arm_exp.restype = c_int64
    library.arm_exp.argtypes = [c_void_p, c_int64, c_int64, c_void_p, POINTER(c_float)]
    library.arm_gate.argtypes = [c_void_p, POINTER(Gate), c_int64, c_void_p]
    library.arm_norm.argtypes = [c_void_p, POINTER(Norm), c_int64, c_void_p]
    library.arm_norm_backward.argtypes = [c_void_p, POINTER(NormBackward), c_int64, c_void_p]
    for name in ("scan_forward", "scan_backward", "conv", "gate", "norm", "norm_backward"):
        getattr(library, f"arm_{name}").restype = None
    return library


@functools.cache
def _kernels(isa: str | None) -> c_void_p:
    """The kernels of an instruction set; None for the best one.

    Raises:
        ValueError: if the instruction set is unknown or this processor does not have it.
    """
    best = _library().arm_best_isa()
    if isa is None:
        return c_void_p(_library().arm_kernels(best))
    if isa not in ISAS[: best + 1]:
        raise ValueError(f"ARM_CPU_ISA={isa!r} cannot run here; give one of {', '.join(ISAS[: best + 1])}")
    return c_void_p(_library().arm_kernels(ISAS.index(isa)))


def kernels() -> c_void_p:
    """The kernels that ARM_CPU_ISA names, otherwise the best that this processor can run."""
    return _kernels(os.environ.get("ARM_CPU_ISA") or None)


def instruction_set() -> str:
    """The instruction set that runs, one of `ISAS`."""
    return os.environ.get("ARM_CPU_ISA") or ISAS[_library().arm_best_isa()]


def bare_exponentials(repeats: int) -> int:
    """Compute exponentials in registers and nothing else, on torch's number of threads.

    The benchmark compares the scan's speed with this.

    Returns:
        number of exponentials computed.
    """
    threads = torch.get_num_threads()
    return _library().arm_exp(kernels(), repeats, threads, _openmp(), (c_float * threads)())


@functools.cache
def _openmp() -> int | None:
    """Address of GOMP_parallel if torch uses that OpenMP runtime, whose threads the kernels then share; else None."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def segment_length() -> int:
    """Tokens between two saved states."""
    return _library().arm_segment()


def scan_parts(rows: int, channels: int) -> int:
    """Number of parts that a scan's backward cuts the channels into; each has its own gradients of B and C."""
    return _library().arm_parts(kernels(), rows, channels, torch.get_num_threads())


def call(name: str, arguments: Structure, *flags: int) -> None:
    """Run the kernel `arm_NAME` on torch's number of threads."""
    function = getattr(_library(), f"arm_{name}")
    function(kernels(), ctypes.byref(arguments), *flags, torch.get_num_threads(), _openmp())


def checked_orders(orders: Tensor) -> Tensor:
    """Orders (K, L), contiguous, after a last check: 4 us for 4 x 196 tokens, whose forward scan takes 1 ms.

    Raises:
        ValueError: if a row is not a permutation, because somebody wrote into orders that were already validated.
    """
    orders = orders.contiguous()
    directions, length = orders.shape
    wrong = _library().arm_wrong_order(orders.data_ptr(), directions, length)
    if wrong >= 0:
        raise ValueError(
            f"orders[{wrong}] is not a permutation of the {length} tokens, although it was trusted; "
            "do not write into its tensor"
        )
    return orders


def to_float(x: Tensor | None) -> Tensor | None:
    """x as contiguous float32."""
    return None if x is None else x.to(torch.float32).contiguous()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor, always on the CPU, whatever torch's default dtype and device."""
    return torch.empty(*shape, dtype=dtype, device="cpu")


def pointer(x: Tensor | None) -> int | None:
    """Address of a tensor's data."""
    return None if x is None else x.data_ptr()


def sum_parts(parts: Tensor) -> Tensor:
    """(P, ...) -> (...): the sum over the parts, or a view if there is only one part."""
    return parts[0] if len(parts) == 1 else parts.sum(0)
