"""The CPU kernels without Python, built for this processor and, with cross compiler and emulator, for 64-bit Arm."""

import platform
import runpy
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from tests.helpers.paths import ROOT

CSRC = ROOT / "arm_backbone/ops/cpu/csrc"
IS_X86 = platform.machine() in ("x86_64", "AMD64")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cpu build")]
SETS = ["plain", "avx2", "avx512"]


@pytest.fixture(scope="module")
def build_settings() -> dict:
    """The variables of setup.py, compiler flags included."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def build(compiler: str, folder, flags: list[str], sets: dict[str, list[str]], x86: bool):
    """Compile the library's sources and the check into one program."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    objects = []

    def compile_one(source, name, more):
        target = folder / f"{name}.o"
        command = [compiler, *flags, "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", *more, "-c", source, "-o", target]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        objects.append(target)

    compile_one(CSRC / "interface.cpp", "interface", ["-DARM_X86"] if x86 else [])
    # at -O3, GCC 12 for Arm fails on it
    compile_one(Path(__file__).with_name("csrc") / "check.cpp", "check", ["-O1"])
    for name, more in sets.items():
        compile_one(CSRC / "kernels.cpp", name, more)
    program = folder / "check"
    done = subprocess.run(
        [compiler, "-static", "-pthread", *map(str, objects), "-o", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return program


def check(*command) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert len(done.stdout.splitlines()) == 21


@pytest.fixture(scope="module")
def program(build_settings, tmp_path_factory):
    return build(
        "c++", tmp_path_factory.mktemp("host"), build_settings["FLAGS"], build_settings["INSTRUCTION_SETS"], IS_X86
    )


@pytest.mark.parametrize("isa", range(3 if IS_X86 else 1), ids=SETS[: 3 if IS_X86 else 1])
def test_kernels_on_this_processor(program, isa):
    check(program, isa)


def test_kernels_on_64_bit_arm(build_settings, tmp_path):
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64 (Debian, Ubuntu: apt install qemu-user g++-aarch64-linux-gnu)")
    program = build("aarch64-linux-gnu-g++", tmp_path, build_settings["FLAGS"], {"plain": []}, False)
    check(emulator, program, 0)
