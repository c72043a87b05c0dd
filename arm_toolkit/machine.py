"""What runs here, in words, for reports."""

import os
import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """The processor's name, and the numbers of its generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in said:
        return platform.processor() or platform.machine()
    if "cpu family" not in said:
        return said["model name"]
    # many virtual machines say no more than "AMD EPYC": family and model tell the generation
    return f"{said['model name']} (family {said['cpu family']}, model {said['model']})"


def machine() -> str:
    """The processor or GPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} GPU"
    return f"{cpu_name()}, {os.cpu_count()} cores, no GPU"
