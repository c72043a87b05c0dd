"""The compiled CPU kernels (csrc/): loading them, and calls with tensors.

Built by `pip install` where there is a C++ compiler; a plain C interface, so one build serves every version of torch.

Legend: B batch, K scan directions, L tokens, D channels, N state size, W taps, S segments.
"""

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from ..layout import by_direction, rows

LIBRARY = Path(__file__).parent / "libarm_cpu.so"
ISAS = ("plain", "avx2", "avx512")
MAX_TAPS = 8  # of the convolution, as in csrc/kernels.h


class _Scan(Structure):
    _fields_ = [
        (name, c_int64)
        for name in (
            *("batch", "directions", "length", "channels", "states"),
            *("softplus", "half", "half_BC", "row_B", "row_C"),
        )
    ] + [(name, c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias", "orders")]


class _ScanForward(Structure):
    _fields_ = [("scan", _Scan), ("y", c_void_p), ("saved", c_void_p), ("keep", c_int64)]


class _ScanBackward(Structure):
    _fields_ = [("scan", _Scan)] + [
        (name, c_void_p)
        for name in (
            *("grad_y", "saved", "grad_u", "grad_delta"),
            *("grad_B", "grad_C", "grad_A", "grad_D", "grad_delta_bias"),
        )
    ]
    _fields_ += [("parts", c_int64)]


class _Conv(Structure):
    _fields_ = [(name, c_int64) for name in ("batch", "directions", "length", "channels", "taps", "row", "half")] + [
        (name, c_void_p)
        for name in ("x", "weight", "bias", "orders", "out", "grad", "grad_x", "grad_weight", "grad_bias")
    ]


class _Gate(Structure):
    _fields_ = [(name, c_int64) for name in ("rows", "channels", "row_grad", "row_x", "row_z", "half")] + [
        (name, c_void_p) for name in ("grad", "x", "z", "out", "grad_z")
    ]


class _Norm(Structure):
    _fields_ = [(name, c_int64) for name in ("rows", "channels", "row_x", "row_branch")] + [
        (name, c_void_p) for name in ("x", "branch", "weight", "bias", "total", "out", "mean", "scale")
    ]
    _fields_ += [("eps", c_float)]


class _NormBackward(Structure):
    _fields_ = [(name, c_int64) for name in ("rows", "channels", "row_grad", "row_total", "row_x")] + [
        (name, c_void_p)
        for name in ("grad", "grad_total", "x", "weight", "mean", "scale", "grad_x", "grad_branch", "sums")
    ]


_STRUCTURES = (_ScanForward, _ScanBackward, _Conv, _Gate, _Norm, _NormBackward)


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run here, with the remedy; None if they can."""
    if not LIBRARY.is_file():
        return "the CPU kernels are not built; with a C++ compiler installed run: pip install -e . --no-build-isolation"
    again = "build it again: pip install -e . --no-build-isolation"
    try:
        library = _library()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded ({error}); {again}"
    if any(library.arm_layout(i) != ctypes.sizeof(structure) for i, structure in enumerate(_STRUCTURES)):
        return f"{LIBRARY.name} was built from other sources than these; {again}"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.arm_kernels.restype = c_void_p
    library.arm_kernels.argtypes = library.arm_layout.argtypes = [c_int64]
    library.arm_layout.restype = c_int64
    library.arm_parts.restype = library.arm_segment.restype = library.arm_best_isa.restype = c_int64
    library.arm_parts.argtypes = [c_void_p, c_int64, c_int64, c_int64]
    library.arm_scan_forward.argtypes = [c_void_p, POINTER(_ScanForward), c_int64, c_void_p]
    library.arm_scan_backward.argtypes = [c_void_p, POINTER(_ScanBackward), c_int64, c_void_p]
    library.arm_conv.argtypes = [c_void_p, POINTER(_Conv), c_int64, c_int64, c_void_p]
    library.arm_exp.restype = c_int64
    library.arm_exp.argtypes = [c_void_p, c_int64, c_int64, c_void_p, POINTER(c_float)]
    library.arm_gate.argtypes = [c_void_p, POINTER(_Gate), c_int64, c_void_p]
    library.arm_norm.argtypes = [c_void_p, POINTER(_Norm), c_int64, c_void_p]
    library.arm_norm_backward.argtypes = [c_void_p, POINTER(_NormBackward), c_int64, c_void_p]
    for name in ("scan_forward", "scan_backward", "conv", "gate", "norm", "norm_backward"):
        getattr(library, f"arm_{name}").restype = None
    return library


@functools.cache
def _kernels(isa: str | None) -> c_void_p:
    """The kernels of an instruction set, the best one when None.

    Raises:
        ValueError: if this processor does not have it.
    """
    best = _library().arm_best_isa()
    if isa is None:
        return c_void_p(_library().arm_kernels(best))
    if isa not in ISAS[: best + 1]:
        raise ValueError(f"ARM_CPU_ISA={isa!r} cannot run here; give one of {', '.join(ISAS[: best + 1])}")
    return c_void_p(_library().arm_kernels(ISAS.index(isa)))


def kernels() -> c_void_p:
    """Those that ARM_CPU_ISA names, otherwise the best that this processor can run."""
    return _kernels(os.environ.get("ARM_CPU_ISA"))


def instruction_set() -> str:
    """Name of the kernels that run, of `ISAS`."""
    return os.environ.get("ARM_CPU_ISA") or ISAS[_library().arm_best_isa()]


def bare_exponentials(repeats: int) -> int:
    """Compute exponentials in registers and nothing else, on torch's number of threads: how many were computed.

    What the scan's speed is measured against.
    """
    threads = torch.get_num_threads()
    return _library().arm_exp(kernels(), repeats, threads, _openmp(), (c_float * threads)())


@functools.cache
def _openmp() -> int | None:
    """Address of torch's own OpenMP entry, so that its threads serve the kernels too; None where it has another."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.float32).contiguous()


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whatever PyTorch's default type and device are."""
    return torch.empty(*shape, dtype=dtype, device="cpu")


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _sum(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def segment_length() -> int:
    """Tokens between two saved states."""
    return _library().arm_segment()


class _Inputs:
    """The inputs of a scan as the kernels take them, kept alive while these read: float32, or with `half` u and delta
    as bfloat16; B and C of either type."""

    def __init__(self, u, delta, A, B, C, D, delta_bias, orders, delta_softplus, half: bool) -> None:
        self.u, self.delta = (by_direction(x if half else x.to(torch.float32)) for x in (u, delta))
        half_BC = B.dtype == C.dtype == torch.bfloat16
        (self.B, row_B), (self.C, row_C) = (
            rows((x if half_BC else x.to(torch.float32)).transpose(0, 1)) for x in (B, C)
        )
        self.A = A.to(torch.float32).transpose(1, 2).contiguous()
        self.D, self.delta_bias = _float(D), _float(delta_bias)
        self.orders = orders.contiguous()
        batch, directions, length, channels = u.shape
        self.states = (batch, directions, A.shape[2], channels)
        tensors = (self.u, self.delta, self.A, self.B, self.C, self.D, self.delta_bias, self.orders)
        flags = (int(delta_softplus), int(half), int(half_BC))
        self.scan = _Scan(*u.shape, A.shape[2], *flags, row_B, row_C, *(_pointer(x) for x in tensors))


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: Tensor,
    delta_softplus: bool,
    keep: bool,
    last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Arguments as `arm_backbone.ops.cross_scan`.

    Returns:
        y (B, L, D), and the states (S + 1, B, K, N, D) before each segment and after the last, or without `keep` the
        latter alone, (1, B, K, N, D). That one is there whether it is asked for (`last`) or not.
    """
    half = u.dtype == delta.dtype == torch.bfloat16
    inputs = _Inputs(u, delta, A, B, C, D, delta_bias, orders, delta_softplus, half)
    batch, _, length, channels = u.shape
    segments = -(-length // segment_length())
    y = _empty(batch, length, channels, dtype=inputs.u.dtype)
    saved = _empty(segments + 1 if keep else 1, *inputs.states)
    forward = _ScanForward(inputs.scan, y.data_ptr(), saved.data_ptr(), int(keep))
    _library().arm_scan_forward(kernels(), ctypes.byref(forward), torch.get_num_threads(), _openmp())
    return y.to(u.dtype), saved


def scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: Tensor,
    delta_softplus: bool,
    saved: Tensor,
    in_place: bool = False,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D and delta_bias, each in its tensor's type; D's and the bias's always made.

    Args:
        in_place: write the gradients of u and delta over them, if they lie direction by direction.
    """
    half = u.dtype == delta.dtype == grad_y.dtype == torch.bfloat16
    inputs = _Inputs(u, delta, A, B, C, D, delta_bias, orders, delta_softplus, half)
    batch, directions, length, channels = u.shape
    grad_y = grad_y.contiguous() if half else _float(grad_y)
    threads = torch.get_num_threads()
    parts = _library().arm_parts(kernels(), batch * directions, channels, threads)
    grad_u, grad_delta = (x if in_place else torch.empty_like(x) for x in (inputs.u, inputs.delta))
    grad_B, grad_C = (_empty(parts, directions, batch, *B.shape[2:]) for _ in range(2))
    grad_A = _empty(batch, *inputs.A.shape)
    grad_D, grad_bias = (_empty(batch, directions, channels) for _ in range(2))
    results = (grad_u, grad_delta, grad_B, grad_C, grad_A, grad_D, grad_bias)
    pointers = (x.data_ptr() for x in (grad_y, saved, *results))
    backward = _ScanBackward(inputs.scan, *pointers, parts)
    _library().arm_scan_backward(kernels(), ctypes.byref(backward), threads, _openmp())
    dtypes = [u.dtype if x is None else x.dtype for x in (u, delta, A, B, C, D, delta_bias)]
    grad_A, grad_B, grad_C, grad_D, grad_bias = (_sum(x) for x in (grad_A, grad_B, grad_C, grad_D, grad_bias))
    grad_u, grad_delta, grad_B, grad_C = (x.transpose(0, 1) for x in (grad_u, grad_delta, grad_B, grad_C))
    grads = (grad_u, grad_delta, grad_A.transpose(1, 2).contiguous(), grad_B, grad_C, grad_D, grad_bias)
    return [grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""
    half = x.dtype == torch.bfloat16
    out = _empty(orders.shape[0], *x.shape, dtype=x.dtype if half else torch.float32)
    _convolve(x if half else x.float(), weight, bias, orders, half=half, out=out)
    return out.to(x.dtype).transpose(0, 1)


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    half = x.dtype == grad.dtype == torch.bfloat16
    grad, grad_x = by_direction(grad if half else grad.float()), _empty(x.shape)
    grad_weight, grad_bias = _empty(x.shape[0], *weight.shape), _empty(x.shape[0], *bias.shape)
    results = dict(grad_x=grad_x, grad_weight=grad_weight, grad_bias=grad_bias)
    _convolve(x if half else x.float(), weight, bias, orders, half, backward=True, grad=grad, **results)
    return grad_x.to(x.dtype), _sum(grad_weight).to(weight.dtype), _sum(grad_bias).to(bias.dtype)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor, half: bool = False, backward: bool = False, **more: Tensor
) -> None:
    x, row = rows(x)
    inputs = dict(x=x, weight=_float(weight), bias=_float(bias), orders=orders.contiguous())
    pointers = {name: tensor.data_ptr() for name, tensor in (inputs | more).items()}
    sizes = (x.shape[0], len(orders), x.shape[1], x.shape[2], weight.shape[2], row, int(half))
    conv = _Conv(*sizes, **pointers)
    _library().arm_conv(kernels(), ctypes.byref(conv), int(backward), torch.get_num_threads(), _openmp())


def gate_forward(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)`, contiguous; x and z (..., C), both float32 or both bfloat16."""
    out = x.new_empty(x.shape)
    _gate(None, x, z, out, None)
    return out


def gate_backward(grad: Tensor, x: Tensor, z: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Gradients of x and z, with `in_place` that of x over the contiguous `grad`."""
    grad_x, grad_z = grad if in_place else x.new_empty(x.shape), z.new_empty(z.shape)
    _gate(grad, x, z, grad_x, grad_z)
    return grad_x, grad_z


def _gate(grad: Tensor | None, x: Tensor, z: Tensor, out: Tensor, grad_z: Tensor | None) -> None:
    width = x.shape[-1]
    (grad, row_grad), (x, row_x), (z, row_z) = (None, 0) if grad is None else rows(grad), rows(x), rows(z)
    sizes = (x.numel() // width, width, row_grad, row_x, row_z, int(x.dtype == torch.bfloat16))
    gate = _Gate(*sizes, *(_pointer(t) for t in (grad, x, z, out, grad_z)))
    _library().arm_gate(kernels(), ctypes.byref(gate), torch.get_num_threads(), _openmp())


def norm_forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (..., D) float32, branch likewise bfloat16 or None -> x + branch, its norm in bfloat16 (`dtype`), means and
    factors of rows."""
    width = x.shape[-1]
    count = x.numel() // width
    total = x if branch is None else x.new_empty(x.shape)
    out = x.new_empty(x.shape, dtype=dtype)
    mean, scale = _empty(2, count).unbind()
    (x, row_x), (branch, row_branch) = rows(x), (None, 0) if branch is None else rows(branch)
    tensors = (x, branch, _float(weight), _float(bias), total, out, mean, scale)
    norm = _Norm(count, width, row_x, row_branch, *(_pointer(t) for t in tensors), eps)
    _library().arm_norm(kernels(), ctypes.byref(norm), torch.get_num_threads(), _openmp())
    return total, out, mean, scale


def norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    branch_type: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, of the branch in `branch_type` (None without one), of weight and of bias."""
    width, count = total.shape[-1], len(mean)
    grad_x = total.new_empty(total.shape)
    grad_branch = None if branch_type is None else total.new_empty(total.shape, dtype=branch_type)
    threads = torch.get_num_threads()
    sums = _empty(threads, 2, width)
    (grad, row_grad), (total, row_x) = rows(grad), rows(total)
    grad_total, row_total = (None, 0) if grad_total is None else rows(grad_total)
    tensors = (grad, grad_total, total, _float(weight), mean, scale, grad_x, grad_branch, sums)
    norm = _NormBackward(count, width, row_grad, row_total, row_x, *(_pointer(t) for t in tensors))
    _library().arm_norm_backward(kernels(), ctypes.byref(norm), threads, _openmp())
    grad_weight, grad_bias = sums.sum(0).to(weight.dtype).unbind()
    return grad_x, grad_branch, grad_weight, grad_bias
