"""The wheel contains all packages, requires the base requirements only, and runs in an environment with them alone."""

import email
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import torch

from arm_backbone.ops.cpu import library as native
from tests.helpers.paths import ROOT

PACKAGES = {name: name for name in ("arm_backbone", "arm_images", "arm_toolkit")} | {"pretrain": "arm_pretrain"}
SOURCES = [*PACKAGES, "setup.py", "pyproject.toml", "tools/versions.txt"]
SOURCES += ["MANIFEST.in", "LICENSE", "README.md"]


def builds(test):
    """Mark a slow test that needs the wheel; these tests run in one worker, so that it is built once."""
    return pytest.mark.slow(pytest.mark.xdist_group("packaging")(test))


def run(*command, cwd, **kwargs):
    """Standard output of `command`; a failure shows the end of its output."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of what is packed: in place, a stale build/ would be packed too."""
    copy = tmp_path_factory.mktemp("build") / "copy"
    for name in SOURCES:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif source.exists():
            shutil.copy(source, target)
    return copy


@pytest.fixture(scope="module")
def wheel(copy) -> Path:
    """Build the wheel through a source distribution."""
    folder = copy.parent
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=copy)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=folder)
    (built,) = folder.glob("*.whl")
    assert "-py3-none-" in built.name, "the library is tied to no version of Python"
    return built


def test_setup_lists_every_package_and_data_file(monkeypatch):
    """Checks what the wheel will contain without building it."""
    monkeypatch.chdir(ROOT)  # setup.py looks for packages in the current folder
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    packages, data = (setup.call_args.kwargs[key] for key in ("packages", "package_data"))
    for folder, package in PACKAGES.items():
        files = {f for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix not in (".pyc", ".so")}
        for name in (name for name in packages if f"{name}.".startswith(f"{package}.")):
            inside = (ROOT / folder).joinpath(*name.split(".")[1:])
            files -= {*inside.glob("*.py"), *(f for pattern in data.get(name, ()) for f in inside.glob(pattern))}
        assert not files, f"not in the wheel: {sorted(f.relative_to(ROOT).as_posix() for f in files)}"


@builds
def test_wheel_contains_every_module_and_configuration(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in PACKAGES.items():
        written = {
            f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert written <= packed, f"not in the wheel: {sorted(written - packed)}"
    others = {name.partition("/")[0] for name in packed} - set(PACKAGES.values())
    assert others == {"arm_backbone-0.1.0.dist-info"}, "something else at top level"
    assert "arm_backbone-0.1.0.dist-info/licenses/LICENSE" in packed


@builds
def test_wheel_requires_the_base_requirements_only(wheel):
    metadata = zipfile.ZipFile(wheel).read("arm_backbone-0.1.0.dist-info/METADATA").decode()
    needs = email.message_from_string(metadata).get_all("Requires-Dist")
    base = {need.partition(">")[0] for need in needs if "extra" not in need}
    assert base == {"torch", "timm", "numpy", "safetensors"}
    extras = [need.replace('"', "'") for need in needs if "extra" in need]
    pins = {word.rstrip(";") for word in (ROOT / "tools" / "versions.txt").read_text().split()}
    assert all(extra.partition(";")[0] in pins for extra in extras)
    assert {extra.partition("==")[0] for extra in extras if "'openmmlab'" in extra} == {
        "onedl-mmengine",
        "onedl-mmcv",
        "onedl-mmdetection",
        "onedl-mmsegmentation",
    }


PROBE = """
import importlib.util, json
import torch
import arm_backbone
from arm_backbone import ARM

m = ARM(arch={"embed_dims": 32, "num_layers": 4}, img_size=64).eval()
with torch.no_grad():
    outs = m(torch.zeros(1, 3, 50, 70))
print(json.dumps({
    "file": arm_backbone.__file__,
    "type": type(outs).__name__,
    "shapes": [list(out.shape) for out in outs],
    "finite": all(bool(out.isfinite().all()) for out in outs),
    "found": [n for n in ("mmengine", "mmcv", "mmdet", "mmseg") if importlib.util.find_spec(n)],
}))
"""


# The scan forward and backward and a convolution, with the library that is given, for each instruction set
COMPUTE = """
import os, sys
from pathlib import Path
import torch
from arm_backbone.ops import cross_conv, cross_scan
from arm_backbone.ops.cpu import library

library.LIBRARY = Path(sys.argv[1])
assert library.unavailable() is None, library.unavailable()
generator = torch.Generator().manual_seed(0)
randn = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()
u, delta, B, C = randn(1, 2, 60, 40), randn(1, 2, 60, 40), randn(1, 2, 60, 16), randn(1, 2, 60, 16)
A, D, bias, weight = -randn(2, 40, 16).exp(), randn(2, 40), randn(2, 40), randn(2, 40, 4)
orders = torch.stack([torch.arange(60), torch.arange(60).flip(0)])
results = []
for isa in library.ISAS[: library._library().arm_best_isa() + 1]:
    os.environ["ARM_CPU_ISA"] = isa
    y = cross_scan(u, delta, A, B, C, D, bias, orders, delta_softplus=True)
    z = cross_conv(y, weight, bias, orders)
    grads = torch.autograd.grad(z.square().sum(), [u, delta, B, C, D, bias, weight], retain_graph=True)
    results.append([t.detach() for t in (y, z, *grads)])
torch.save(results, sys.argv[2])
"""


@builds
def test_backbone_runs_in_an_environment_with_the_base_requirements_only(wheel, tmp_path):
    try:
        run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
        python = tmp_path / "venv" / "bin" / "python"
        # the locked versions, so that pip finds torch in its cache
        locked = ["--constraint", ROOT / "tools" / "versions.txt"]
        run(python, "-m", "pip", "install", *locked, wheel, cwd=tmp_path)
        # -I ignores this folder and PYTHONPATH: only the installed packages are found
        answer = json.loads(run(python, "-I", "-c", PROBE, cwd=tmp_path).splitlines()[-1])
    finally:
        shutil.rmtree(tmp_path / "venv", ignore_errors=True)  # 5 GB, which pytest would keep
    assert Path(answer["file"]).is_relative_to(tmp_path), "ran something other than the installed wheel"
    assert answer["found"] == []
    assert answer["type"] == "tuple"
    assert answer["shapes"] == [[1, 32, 4, 5]] * 4
    assert answer["finite"]


@builds
def test_kernels_are_built_without_a_compiler(copy, tmp_path):
    """pip gets ziglang for the build. Its library serves glibc 2.17, and computes what another compiler's does."""
    if platform.machine() != "x86_64":
        pytest.skip("the library is inspected for x86-64 only")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    env = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTHONPATH")}
    options = ["--no-deps", "--wheel-dir", tmp_path / "wheel"]
    env["PATH"] = str(tmp_path / "bin")  # without a compiler
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=tmp_path, env=env)
    (built,) = (tmp_path / "wheel").glob("*.whl")
    assert built.name == "arm_backbone-0.1.0-py3-none-manylinux_2_17_x86_64.whl"
    library = Path(zipfile.ZipFile(built).extract("arm_backbone/ops/cpu/libarm_cpu.so", tmp_path))
    content = library.read_bytes()
    assert len(content) < 1_000_000
    assert max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", content)) <= 17
    needed = set(re.findall(rb"lib[\w+]+\.so\.\d+", content))
    assert needed <= {b"libc.so.6", b"libpthread.so.0"}
    for name, file in (("ours", native.LIBRARY), ("built", library)):
        run(sys.executable, "-c", COMPUTE, file, tmp_path / f"{name}.pt", cwd=ROOT)
    ours, built = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("ours", "built"))
    for expected, result in zip(sum(ours, []), sum(built, []), strict=True):
        assert (result - expected).norm() < 1e-6 * expected.norm()
