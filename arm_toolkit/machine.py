"""What runs here, in words, for reports."""

import os
import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """The processor or GPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} GPU"
    return f"{cpu_name()}, {os.cpu_count()} cores, no GPU"
