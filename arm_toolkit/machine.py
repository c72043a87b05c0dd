"""The processor or GPU that runs here, in words and abilities, and how this process keeps memory."""

import ctypes
import os
import platform
from pathlib import Path

import torch


def _cpu_info() -> dict[str, str]:
    """What the system says of its last processor; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """The processor's name, and the numbers of its generation."""
    said = _cpu_info()
    if "model name" not in said:
        return platform.processor() or platform.machine()
    if "cpu family" not in said:
        return said["model name"]
    # many virtual machines say no more than "AMD EPYC": family and model tell the generation
    return f"{said['model name']} (family {said['cpu family']}, model {said['model']})"


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; without them bfloat16 costs time instead of saving it."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_info().get("flags", "").split())


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next tensors; whether the C library can (glibc's can).

    By default each large tensor comes from the system anew, and its first use costs a page fault for every 4 KiB: up to
    half of the time of a scan with its gradients. PyTorch keeps freed memory on a GPU, not on a CPU.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def machine() -> str:
    """The processor or GPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} GPU"
    return f"{cpu_name()}, {os.cpu_count()} cores, no GPU"
