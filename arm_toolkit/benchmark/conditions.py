"""The conditions of a measurement: machine, versions and load."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

from arm_backbone.ops.cpu import library as native

from ..machine import available_cores, cpu_name, total_memory
from .case import Setting, resolved

PEAK_MEMORY = {  # how peak memory is measured
    "cpu": "above weights and inputs; tensors alone (torch.profiler's record), without scratch memory of libraries",
    "cuda": "above weights and inputs; torch.cuda.max_memory_allocated",
}


def conditions(device: torch.device) -> dict:
    """Hardware, versions, date and load, by name; an entry that does not apply is None."""
    about = dict(cpu=cpu_name(), cores=available_cores(), threads=torch.get_num_threads())
    if native.unavailable() is None:
        about["instruction_set"] = native.instruction_set()
    else:
        about["instruction_set"] = "PyTorch's own (the CPU kernels are not built)"
    about["scan_backend"] = resolved(Setting(device), ["auto"])[0]
    about["memory_gb"] = round(total_memory(torch.device("cpu")) / 1e9, 1)
    about["gpu"] = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    about.update(python=platform.python_version(), torch=torch.__version__, commit=_commit())
    about.update(date=datetime.datetime.now().astimezone().isoformat(timespec="minutes"), load=os.getloadavg()[0])
    about["peak_memory"] = PEAK_MEMORY[device.type]
    return about


def busy_warning(about: dict) -> str | None:
    """A warning if other jobs leave fewer free cores than this process uses; `about` comes from `conditions`."""
    if about["load"] + about["threads"] <= about["cores"] + 0.5:
        return None
    return (
        f"the machine is busy: load {about['load']:.1f} on {about['cores']} cores before the start, and this benchmark "
        f"uses {about['threads']} threads; the times are not reliable, and the ratios less reliable than usual"
    )


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
