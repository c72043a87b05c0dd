"""Imports go one way between the rooms: the model library must stay usable without OpenMMLab, and
pretraining without the detection and segmentation packages."""

import ast
import sys

import pytest

from helpers.paths import ROOT

# Optional back ends of the model library: imported where they are used, and only if they are there
BACKENDS = {"triton", "mamba_ssm", "causal_conv1d"}
# Optional sources of images
SOURCES = {"datasets"}
BASE = {"torch", "timm", "numpy", "safetensors"}
ROOMS = {
    "arm_backbone": BASE | BACKENDS | {"arm_backbone"},
    "pretrain": BASE | SOURCES | {"torchvision", "PIL", "mmengine", "arm_backbone", "arm_pretrain"},
}
# The one file of a room that may import more
EXCEPTIONS = {"arm_backbone/openmmlab.py": {"mmengine"}}


def imported(source: str) -> set[str]:
    """Top-level packages that `source` imports anywhere, `import_module("...")` included; relative
    imports stay inside the room and are left out."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "attr", getattr(node.func, "id", None))
            if function in ("import_module", "__import__"):
                names.add(node.args[0].value)
    return {name.partition(".")[0] for name in names if not name.startswith(".")}


@pytest.mark.parametrize(
    "source, names",
    [
        ("import torch.nn as nn, timm", {"torch", "timm"}),
        ("from mmdet.models import FPN", {"mmdet"}),
        ("def f():\n    import mmengine", {"mmengine"}),
        ("from . import ops\nfrom .arm import ARM", set()),
        ("importlib.import_module('mmseg.apis')", {"mmseg"}),
        ("importlib.import_module('.openmmlab', __name__)", set()),
    ],
)
def test_imports_are_found(source, names):
    assert imported(source) == names


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ has no Python files"
    wrong = []
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        allowed = ROOMS[room] | EXCEPTIONS.get(name, set()) | sys.stdlib_module_names
        wrong += [f"{name} imports {package}" for package in imported(file.read_text()) - allowed]
    assert not wrong, "\n".join(wrong)
