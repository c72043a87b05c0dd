"""The description of the processor, and the reuse of freed memory."""

import subprocess
import sys

import pytest
import torch

from arm_toolkit import machine
from arm_toolkit.experiments import quickstart
from arm_toolkit.experiments.steps import FASTER, precision

FAULTS = """
import resource, sys, torch
from arm_toolkit.machine import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
for _ in range(20):  # warm-up: small allocations land in the first freed blocks, and the heap still grows
    torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again():
    """Successive tensors of 64 MiB reuse the same pages instead of faulting in new ones."""
    faults = {}
    for how in ("default", "keep"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
        if done.returncode == 3:
            pytest.skip("the C library has no mallopt")
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 10


def test_the_setting_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("ARM_KEEP_FREED_MEMORY", "0")
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: pytest.fail("mallopt was looked up"))
    assert machine.keep_freed_memory() is False


@pytest.mark.parametrize(
    ("said", "name", "seconds", "multiplies"),
    [
        (
            {"model name": "AMD EPYC", "cpu family": "25", "model": "17", "flags": "fma avx512f avx512_bf16"},
            "AMD EPYC (family 25, model 17)",
            (1.0, 2.0),
            True,
        ),
        (
            {"model name": "Xeon", "cpu family": "6", "model": "207", "flags": "fma avx512f avx512_bf16"},
            "Xeon (family 6, model 207)",
            (1.8, 2.0),
            False,
        ),
        (
            {"model name": "Some", "cpu family": "6", "model": "85", "flags": "avx512f"},
            "Some (family 6, model 85)",
            (1.0, 2.0),
            False,
        ),
        ({"model name": "ARMv8", "Features": "fp asimd"}, "ARMv8", (1.0, 2.0), False),
    ],
)
def test_the_processor(said, name, seconds, multiplies, monkeypatch, tmp_path):
    """Its name includes family and model; the quickstart trains with --amp only if bfloat16 products are faster."""
    monkeypatch.setattr(machine, "_cpu_info", lambda: said)
    monkeypatch.setattr(machine, "_product_seconds", dict(zip((torch.bfloat16, torch.float32), seconds)).get)
    machine.cpu_multiplies_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.cpu_name() == name
    assert machine.cpu_multiplies_bfloat16() is multiplies
    trained = [step.command for step in quickstart.plan() if step.command[0] in ("tools/train.py", "tools/pretrain.py")]
    assert len(trained) == 3 and all(FASTER in command for command in trained)
    assert precision(tmp_path / "new") == ["--amp"] * multiplies
    machine.cpu_multiplies_bfloat16.cache_clear()
    monkeypatch.setattr(machine, "_product_seconds", lambda dtype: 1.0 if multiplies else 1.0 - dtype.itemsize)
    assert precision(tmp_path / "new") == ["--amp"] * multiplies  # a second trial has no say
    machine.cpu_multiplies_bfloat16.cache_clear()


def test_a_product_is_timed():
    assert all(0 < machine._product_seconds(dtype) < 1 for dtype in (torch.float32, torch.bfloat16))
