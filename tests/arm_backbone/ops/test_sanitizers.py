"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in random valid and invalid calls."""

import json
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from arm_backbone.ops.cpu import library
from tests.helpers.paths import ROOT

CSRC = ROOT / "arm_backbone/ops/cpu/csrc"
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
CALLS = 1500  # for each instruction set
# stands in for the sets that are not compiled here
STAND_IN = 'struct Kernels; extern "C" const Kernels *arm_kernels_{best}();\n'
STAND_IN += 'extern "C" const Kernels *arm_kernels_{other}() {{ return arm_kernels_{best}(); }}\n'


def runtimes() -> list[str]:
    """The sanitizers' libraries; the test is skipped where the compiler has none."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        try:
            done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no g++")
        path = done.stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"g++ has no {name}")
        found.append(path)
    return found


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> tuple[Path, list[str]]:
    """A library with sanitizers (the plain kernels and the best of this processor), and its instruction sets."""
    runtimes()
    if library.unavailable():
        pytest.skip(library.unavailable())
    folder = tmp_path_factory.mktemp("sanitized")
    with mock.patch("setuptools.setup"):
        settings = runpy.run_path(str(ROOT / "setup.py"))
    best = library.ISAS[library._library().arm_best_isa()]
    x86 = platform.machine() in ("x86_64", "AMD64")
    flags = [flag for flag in settings["FLAGS"] if not flag.startswith(("-O", "-g"))] + SANITIZE
    sources = {"interface": (CSRC / "interface.cpp", ["-DARM_X86"] if x86 else [])}
    sets = ["plain"] if best == "plain" else ["plain", best]
    sources |= {name: (CSRC / "kernels.cpp", settings["INSTRUCTION_SETS"][name]) for name in sets}
    if x86:
        for other in {"avx2", "avx512"} - set(sets):
            (folder / f"{other}.cpp").write_text(STAND_IN.format(best=best, other=other))
            sources[other] = (folder / f"{other}.cpp", [])
    running = [
        subprocess.Popen(["g++", *flags, *more, "-c", str(source), "-o", str(folder / f"{name}.o")])
        for name, (source, more) in sources.items()
    ]
    assert all(process.wait() == 0 for process in running)
    target = folder / "libarm_cpu.so"
    objects = [str(folder / f"{name}.o") for name in sources]
    link = ["g++", *SANITIZE, "-shared", "-pthread", *objects, "-o", str(target)]
    assert subprocess.run(link).returncode == 0
    return target, sets


@pytest.mark.slow
@pytest.mark.xdist_group("cpu build")
def test_rows_32_to_35_random_calls_under_sanitizers(sanitized):
    """No call, valid or not, accesses memory that is not its own or is undefined in C++."""
    target, sets = sanitized
    script = Path(__file__).with_name("sanitized_calls.py")
    environment = os.environ | dict(
        LD_PRELOAD=" ".join(runtimes()),
        ASAN_OPTIONS="detect_leaks=0:detect_odr_violation=0:abort_on_error=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        ARM_SCAN_BACKEND="cpu",
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    total = {}
    for i, isa in enumerate(sets):
        command = [sys.executable, str(script), str(target), str(CALLS), str(i * CALLS)]
        done = subprocess.run(
            command, env=environment | dict(ARM_CPU_ISA=isa), capture_output=True, text=True, timeout=600, cwd=ROOT
        )
        assert done.returncode == 0, f"{isa}: {done.stdout[-500:]}\n{done.stderr[-4000:]}"
        assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr, done.stderr[-4000:]
        counts = json.loads(done.stdout.splitlines()[-1])
        assert sum(counts.values()) == CALLS and counts["results"] > CALLS // 4 and counts["ValueError"] > CALLS // 10
        total[isa] = counts
    print("calls without a report:", json.dumps(total))
