"""The description of the processor, the reuse of freed memory, and float32 products by oneDNN."""

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


EPYC = {"vendor_id": "AuthenticAMD", "flags": "fma avx2 avx512f avx512bw"}


@pytest.fixture
def highest_precision():
    """PyTorch's default; conftest.py restores what was set before."""
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("info", "variable", "exact", "multiplies"),
    [
        (EPYC, None, True, True),
        (EPYC, "0", True, False),
        (EPYC, None, False, False),
        (EPYC | {"flags": "fma avx2"}, None, True, False),
        (EPYC | {"vendor_id": "GenuineIntel"}, None, True, False),
        ({}, None, True, False),
    ],
)
def test_where_onednn_multiplies(info, variable, exact, multiplies, monkeypatch, highest_precision):
    monkeypatch.setattr(machine, "_cpu_info", lambda: info)
    monkeypatch.setattr(machine, "_multiplies_exactly", lambda: exact)
    if variable:
        monkeypatch.setenv("ARM_ONEDNN_PRODUCTS", variable)
    assert machine.multiply_with_onednn() is multiplies
    assert torch.get_float32_matmul_precision() == ("medium" if multiplies else "highest")
    assert machine.multiply_with_onednn() is multiplies  # a second time


def test_a_precision_that_was_set_is_kept(monkeypatch, highest_precision):
    monkeypatch.setattr(machine, "_cpu_info", lambda: EPYC)
    torch.set_float32_matmul_precision("high")
    assert machine.multiply_with_onednn() is False
    assert torch.get_float32_matmul_precision() == "high"


def test_a_precision_of_one_back_end_is_kept():
    """PyTorch's two ways to set it exclude each other."""
    program = (
        "import torch; torch.backends.mkldnn.matmul.fp32_precision = 'tf32'; from arm_toolkit import machine; "
        f"machine._cpu_info = lambda: {EPYC | dict(flags=EPYC['flags'] + ' avx512_bf16')!r}; "
        "print(machine.multiply_with_onednn(), machine.cpu_multiplies_bfloat16() in (True, False))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


def test_rounding_to_bfloat16_is_noticed(monkeypatch):
    assert machine._multiplies_exactly()
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *args, **kwargs: full(*args, **kwargs).bfloat16().float())
    assert not machine._multiplies_exactly()


def test_products_stay_float32(highest_precision):
    """Whatever this processor does: sums over 2,048 numbers are exact to a few float32 roundings."""
    machine.multiply_with_onednn()
    x, weight = torch.randn(196, 2048), torch.randn(768, 2048)
    exact = x.double() @ weight.double().T
    assert (x @ weight.T - exact).abs().max() < 3e-6 * exact.abs().max()


def test_a_product_is_timed():
    assert all(0 < machine._product_seconds(dtype) < 1 for dtype in (torch.float32, torch.bfloat16))
