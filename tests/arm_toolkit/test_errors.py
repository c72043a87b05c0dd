"""Errors are one line, and tools answer --help and wrong arguments at once, without loading PyTorch or OpenMMLab."""

import subprocess
import sys

import pytest

from arm_toolkit import errors
from tests.helpers.paths import ROOT

HEAVY = ("mmengine", "mmcv", "matplotlib", "torch", "timm")


def loaded(code: str) -> set[str]:
    """The heavy packages that are loaded in a new process after it has run `code`."""
    report = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_errors_load_nothing_heavy():
    assert loaded("import arm_toolkit.errors") == set()


@pytest.mark.parametrize("tool", ["train.py", "test.py", "knn.py", "robustness.py", "prepare_data.py"])
def test_help_loads_nothing_heavy(tool):
    code = f"""
import runpy, sys
sys.argv = ["tools/{tool}", "--help"]
try:
    runpy.run_path("tools/{tool}", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
    assert loaded(code) == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.py"], "configuration gone.py does not exist"),
        (["README.md"], "README.md is not a .py file"),
        (["det_configs/mask_rcnn_arm_b.py", "--cfg-options", "data_root"], "data_root: give KEY=VALUE"),
    ],
)
def test_wrong_arguments_load_nothing_heavy(arguments, says):
    command = [sys.executable, "-X", "importtime", "tools/train.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "error: " in done.stderr and says in done.stderr
    assert not [name for name in HEAVY if f" {name}\n" in done.stderr]


def test_checkpoint_errors_are_the_users():
    from arm_backbone.checkpoint.files import CheckpointError

    assert CheckpointError in errors.user_errors()
    with pytest.raises(SystemExit) as end:
        errors.run_tool(lambda: (_ for _ in ()).throw(CheckpointError("the file is broken")))
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "gone.txt"), "gone.txt: No such file or directory"),
        (ValueError("\n first line\nsecond line"), "first line"),
        (ValueError(), "ValueError"),
        (
            ValueError("Caught DataError in DataLoader worker process 0.\nTraceback ...\narm.DataError: image x: bad"),
            "image x: bad",
        ),
    ],
)
def test_one_line(error, line):
    assert errors.one_line(error).strip() == line


def test_missing_operators_of_mmcv_are_one_line(capsys):
    """As mmengine reports an import of a configuration that failed."""

    def main():
        try:
            raise ModuleNotFoundError("No module named 'mmcv._ext'", name="mmcv._ext")
        except ImportError as error:
            raise ImportError("Failed to import arm_toolkit.models.float32_heads") from error

    with pytest.raises(SystemExit) as end:
        errors.run_tool(main)
    assert end.value.code == 2
    line = (
        "error: mmcv's operators cannot be imported (No module named 'mmcv._ext'); run: python -m arm_toolkit.mmcv_ops"
    )
    assert capsys.readouterr().err == f"{line}\n"
