"""The backbone and the conversion tool in an environment that has only the base requirements."""

import os
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_pretrain import ARMPretrainer
from tests.helpers.paths import ROOT
from tests.helpers.tools import run_tool

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not list all packages")
BASE = ("torch", "timm", "numpy", "safetensors")
OURS = ("arm_backbone", "arm_images", "arm_pretrain", "arm_toolkit")
# sitecustomize.py, which Python imports at start: hides packages as if they were not installed.
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}


class VisibleFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = VisibleFinder
"""


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """These distributions and all their dependencies, as far as they are installed here."""
    found, queue = set(), [canonicalize_name(name) for name in names]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            needs = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue
        found.add(name)
        queue += [canonicalize_name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def base_environment(tmp_path_factory) -> dict[str, str]:
    """Environment variables for processes that see only the base requirements and our own packages."""
    visible = with_dependencies(BASE)
    hidden = {
        package
        for package, distributions in packages_distributions().items()
        if package not in OURS and not visible & {canonicalize_name(name) for name in distributions}
    }
    assert {"mmengine", "mmcv", "mmdet", "mmseg", "matplotlib"} <= hidden and not hidden & {"torch", "torchvision"}
    folder = tmp_path_factory.mktemp("hide")
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    return dict(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))


def test_conversion_tool(base_environment, tmp_path, small_arch):
    source, target = tmp_path / "pretrain.pth", tmp_path / "backbone.pth"
    state = ARMPretrainer(small_arch, img_size=96, cluster_side=2, decoder_dim=64).state_dict()
    torch.save(dict(state_dict=state), source)
    done = run_tool("convert_checkpoint.py", source, target, "--to", "backbone", env=base_environment)
    assert done.returncode == 0, done.stderr
    assert "one scan copied to 4" in done.stdout and model_state(read_checkpoint(target))["pos_embed"].shape[1] == 6
    done = run_tool("convert_checkpoint.py", target, source, "--to", "pretrain", env=base_environment)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_plain_models(base_environment):
    script = """
import timm, torch, arm_backbone, arm_backbone.arm
assert arm_backbone.ARM is arm_backbone.arm.ARM
model = timm.create_model("arm_tiny_patch16_224", arch=dict(embed_dims=32, num_layers=4), num_classes=3)
print(model(torch.zeros(1, 3, 32, 32)).shape)
import mmengine
"""
    done = run_tool(sys.executable, "-c", script, env=base_environment)
    assert "torch.Size([1, 3])" in done.stdout
    assert done.stderr.rstrip().endswith("No module named 'mmengine'")
