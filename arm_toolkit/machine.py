"""Describes this machine's processor or GPU, and makes a process compute faster on a CPU."""

import ctypes
import functools
import os
import platform
import time
from pathlib import Path

import torch

from .signal_stacks import separate_signal_stacks

KEEP_FREED_MEMORY, ONEDNN_PRODUCTS = "ARM_KEEP_FREED_MEMORY", "ARM_ONEDNN_PRODUCTS"  # 0 switches it off


def _cpu_info() -> dict[str, str]:
    """/proc/cpuinfo of the last processor; {} if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """The processor's name, with family and model numbers if the system reports them."""
    info = _cpu_info()
    if "model name" not in info:
        return platform.processor() or platform.machine()
    if "cpu family" not in info:
        return info["model name"]
    # many virtual machines report only "AMD EPYC": family and model identify the generation
    return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32 ones; measured, in some milliseconds.

    The instructions do not tell: an Intel Xeon with AVX-512 BF16 but without AMX takes twice as long as in float32.
    """
    if {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_info().get("flags", "").split()):
        return False
    before = _float32_precision()
    multiply_with_onednn()
    try:
        return _product_seconds(torch.bfloat16) < 0.8 * _product_seconds(torch.float32)
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest time of a product of matrices as large as those of a small ARM.

    It is the time of one thread on its core, which does not count when other jobs have the core.
    """
    x, weight = torch.ones(1024, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(20):
            start = time.thread_time()
            torch.nn.functional.linear(x, weight)
            times.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory(device: torch.device) -> int:
    """Total memory of the machine or the GPU in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> bool:
    """Make this process reuse the memory that it frees; returns whether that worked (it needs glibc).

    By default glibc returns each large tensor to the system, and the next one costs a page fault per 4 KiB: up to half
    the time of a scan with gradients. PyTorch caches freed memory on a GPU only. The setting holds for the whole
    process. With the environment variable ARM_KEEP_FREED_MEMORY=0 this function does nothing.
    """
    if os.environ.get(KEEP_FREED_MEMORY) == "0":
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def multiply_with_onednn() -> bool:
    """Make oneDNN multiply float32 matrices on AMD processors with AVX-512; returns whether it does.

    There MKL, PyTorch's default, uses AVX2 and takes twice as long. The switch for it, a float32 precision of "medium",
    also allows rounding to bfloat16, for which oneDNN needs AMX; no AMD processor has it, and a product is checked for
    it. Signals must not disturb oneDNN (`separate_signal_stacks`), so the main thread must call this. The setting holds
    for the whole process. A precision that somebody has set is kept, and with the environment variable
    ARM_ONEDNN_PRODUCTS=0 this function does nothing.
    """
    info, before = _cpu_info(), _float32_precision()
    is_amd = info.get("vendor_id") == "AuthenticAMD" and "avx512bw" in info.get("flags", "").split()
    if before == "medium":  # set by an earlier call, or by somebody else
        separate_signal_stacks()
        return is_amd
    if not is_amd or before != "highest" or os.environ.get(ONEDNN_PRODUCTS) == "0" or not separate_signal_stacks():
        return False
    torch.set_float32_matmul_precision("medium")
    if _multiplies_exactly():
        return True
    torch.set_float32_matmul_precision(before)
    return False


def _float32_precision() -> str | None:
    """PyTorch's precision of float32 products; None if somebody has set it for one back end only."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _multiplies_exactly() -> bool:
    """Whether a float32 product keeps digits that bfloat16 does not have."""
    x = torch.full((512, 512), 1 + 2**-12, dtype=torch.float32, device="cpu")
    return bool(((x @ x) / 512 - (1 + 2**-11)).abs().max() < 1e-5)


def compute_faster() -> dict[str, bool]:
    """What training, testing, prediction and benchmarks set on a CPU: name -> whether it holds now."""
    return dict(keeps_freed_memory=keep_freed_memory(), multiplies_with_onednn=multiply_with_onednn())


def machine() -> str:
    """The device in one phrase: the GPU, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} GPU"
    return f"{cpu_name()}, {os.cpu_count()} cores, no GPU"
