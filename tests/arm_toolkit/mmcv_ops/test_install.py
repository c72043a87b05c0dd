"""`python -m arm_toolkit.mmcv_ops` completes an mmcv without operators, and leaves a compiled one alone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arm_toolkit.errors import ConfigError
from arm_toolkit.mmcv_ops.install import SOURCE, install
from tests.helpers.paths import ROOT

REAL = Path(importlib.util.find_spec("mmcv").origin).parent


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder of packages with mmcv as its pure wheel installs it: no module `_ext`, and pip's record."""
    (tmp_path / "mmcv").mkdir()
    for file in REAL.iterdir():
        if not file.name.startswith("_ext"):
            (tmp_path / "mmcv" / file.name).symlink_to(file)
    info = tmp_path / "onedl_mmcv-2.3.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 2.3.6\n")
    (info / "RECORD").write_text("mmcv/__init__.py,,\nonedl_mmcv-2.3.6.dist-info/RECORD,,\n")
    return tmp_path


@pytest.fixture
def first(site, monkeypatch) -> Path:
    """The same folder, in which this process looks for mmcv first."""
    monkeypatch.delitem(sys.modules, "mmcv", raising=False)
    monkeypatch.syspath_prepend(site)
    return site


def python(site: Path, *arguments: str, ours: bool = False) -> subprocess.CompletedProcess:
    """Run Python with the folder of packages first; `ours` adds this repository."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *([str(ROOT)] if ours else [])])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=site, timeout=300)


def test_writes_the_module_once_and_pip_will_remove_it(first):
    target = first / "mmcv" / "_ext.py"
    assert install() == f"{target}: NMS and RoIAlign are computed by torchvision"
    assert target.read_bytes() == SOURCE.read_bytes()
    written = target.stat().st_mtime_ns
    install()
    assert target.stat().st_mtime_ns == written
    assert (first / "onedl_mmcv-2.3.6.dist-info/RECORD").read_text().splitlines()[-1] == "mmcv/_ext.py,,"
    assert (first / "onedl_mmcv-2.3.6.dist-info/RECORD").read_text().count("_ext.py") == 1
    target.write_text("of an earlier version")
    install()
    assert target.read_bytes() == SOURCE.read_bytes()


def test_mmcv_without_operators_is_refused(first):
    (first / "mmcv" / "ops").unlink()
    with pytest.raises(ConfigError, match=r"mmcv has no operators at all \(mmcv-lite\); install onedl-mmcv"):
        install()


@pytest.mark.slow
def test_other_programs_find_the_operators(site):
    """As a user of mmdet alone has it: a fresh interpreter that imports nothing of this project."""
    before = python(site, "-c", "import mmdet.models")
    assert "No module named 'mmcv._ext'" in before.stderr
    done = python(site, "-m", "arm_toolkit.mmcv_ops", ours=True)
    assert done.returncode == 0, done.stderr
    program = """
import sys
import mmdet.models
from mmdet.apis import DetInferencer
from mmseg.apis import MMSegInferencer
import mmcv._ext, torch
from mmcv.ops import batched_nms, roi_align, soft_nms
assert mmcv._ext.__file__.endswith("_ext.py") and not any(name.startswith("arm_") for name in sys.modules)
boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
kept = batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.5))[1]
x = torch.ones(1, 2, 8, 8, requires_grad=True)
roi_align(x, torch.tensor([[0.0, 0, 0, 8, 8]]), 7, 1.0, 0, "avg", True).sum().backward()
print(kept.tolist(), x.grad.sum().item())
soft_nms(boxes, torch.ones(3))
"""
    done = python(site, "-c", program)
    assert "[0, 2] 98" in done.stdout, done.stderr
    assert "mmcv's operator softnms is not among" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_compiled_operators_are_left_alone(site):
    library = next(REAL.glob("_ext*.so"), None)
    broken = site / "mmcv" / "_ext.so"
    broken.write_bytes(b"")
    done = python(site, "-m", "arm_toolkit.mmcv_ops", ours=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {broken} does not load (") and done.stderr.count("\n") == 1
    broken.unlink()
    if library is None:
        pytest.skip("mmcv is installed without its compiled operators")
    (site / "mmcv" / library.name).symlink_to(library)
    done = python(site, "-m", "arm_toolkit.mmcv_ops", ours=True)
    assert "mmcv's own compiled operators are used" in done.stdout, done.stderr
    assert not (site / "mmcv" / "_ext.py").exists()
