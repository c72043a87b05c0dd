"""The wheel contains all packages, requires the base requirements only, and runs in an environment with them alone."""

import email
import json
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest

from tests.helpers.paths import ROOT

PACKAGES = {name: name for name in ("arm_backbone", "arm_images", "arm_toolkit")} | {"pretrain": "arm_pretrain"}
SOURCES = [*PACKAGES, "setup.py", "pyproject.toml", "tools/versions.txt"]
SOURCES += ["MANIFEST.in", "LICENSE", "README.md"]


def builds(test):
    """Mark a slow test that needs the wheel; these tests run in one worker, so that it is built once."""
    return pytest.mark.slow(pytest.mark.xdist_group("packaging")(test))


def run(*command, cwd):
    """Standard output of `command`; a failure shows the end of its output."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel through a source distribution, from a copy: in place, a stale build/ would be packed."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "copy"
    for name in SOURCES:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=copy)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=folder)
    (built,) = folder.glob("*.whl")
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
    pins = (ROOT / "tools" / "versions.txt").read_text().split()
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
