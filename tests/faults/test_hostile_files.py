"""Every tool with every hostile file, in one process: an error in one line, and nothing is executed."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import timm

from arm_backbone.checkpoint.files import CheckpointError
from arm_images.errors import DataError
from arm_toolkit.datasets.transforms import LoadLabels
from arm_toolkit.experiments.runs import inspect_run, read_run
from tests.helpers.hostile import CHECKPOINTS, write_data
from tests.helpers.runs import CONFIGS
from tests.helpers.tools import invoke

pytestmark = pytest.mark.xdist_group("hostile")


@pytest.fixture(scope="module")
def place(shapes, tmp_path_factory) -> Path:
    """A folder with configurations and hostile files; the canary would appear in it."""
    folder = tmp_path_factory.mktemp("hostile")
    for kind, config in CONFIGS.items():
        config(shapes, **{} if kind == "pretrain" else dict(validate=True)).dump(folder / f"{kind}.py")
    for name, content in CHECKPOINTS.items():
        (folder / name).write_bytes(content(folder / "canary"))
    return folder


def init_cfg(file: str) -> str:
    return f"model.backbone.init_cfg={dict(type='Pretrained', checkpoint=file)}"


# name of a tool's use -> its arguments, given a checkpoint
READERS: dict[str, Callable[[str], tuple]] = {
    "convert": lambda file: ("convert_checkpoint.py", file, "out.pth", "--to", "backbone"),
    "convert --ema": lambda file: ("convert_checkpoint.py", file, "out.pth", "--to", "classifier", "--ema"),
    "visualize": lambda file: ("visualize_features.py", file, "images"),
    "reconstruct": lambda file: ("reconstruct.py", file, "images"),
    "publish": lambda file: ("publish.py", file, "published"),
    "robustness": lambda file: ("robustness.py", file, "--model", "arm_tiny_patch16_224", "--data", "."),
    "pretraining tokenizer": lambda file: (
        *("train.py", "pretrain.py", "--cfg-options"),
        f"model.target={dict(type='KMeansTokenizer', checkpoint=file)}",
    ),
    "train, init_cfg": lambda file: ("train.py", "seg.py", "--cfg-options", init_cfg(file)),
    "train, load_from": lambda file: ("train.py", "seg.py", "--cfg-options", f"load_from={file}"),
    "train --resume, detection": lambda file: ("train.py", "det.py", "--resume", file),
    "train --resume, segmentation": lambda file: ("train.py", "seg.py", "--resume", file),
    "pretrain --resume": lambda file: ("pretrain.py", "pretrain.py", "--resume", file),
    "test, detection": lambda file: ("test.py", "det.py", file),
    "test, segmentation": lambda file: ("test.py", "seg.py", file),
}
FAST = ("convert", "visualize", "reconstruct", "publish")
ONE_OF_EACH = ("system_in_zip.pth", "pickle.safetensors")


def _cases() -> list:
    return [
        pytest.param(tool, file, marks=[] if tool in FAST or file in ONE_OF_EACH else pytest.mark.slow)
        for tool in READERS
        for file in CHECKPOINTS
    ]


@pytest.mark.parametrize(("tool", "file"), _cases())
def test_no_tool_executes_a_checkpoint(tool, file, place, tmp_path):
    """Deliverable 4"""
    script, *arguments = READERS[tool](str(place / file))
    arguments = [place / a if (place / str(a)).suffix == ".py" and (place / str(a)).is_file() else a for a in arguments]
    done = invoke(script, *arguments, cwd=tmp_path)
    assert not (place / "canary").exists(), "executed"
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and file in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_python_functions_execute_no_checkpoint(file, place, tmp_path):
    """timm's own way to give a file, and the reports."""
    with pytest.raises(Exception):  # noqa: B017 timm loads the file itself, with an error of its own
        overlay = dict(file=str(place / file))
        timm.create_model("arm_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay)
    (tmp_path / "last_checkpoint").write_text(file)
    (tmp_path / file).write_bytes((place / file).read_bytes())
    with pytest.raises(CheckpointError, match=re.escape(file)):
        read_run(tmp_path)
    assert file in "".join(inspect_run(tmp_path, "run").faults)
    assert not (place / "canary").exists(), "executed"


# -------------------------------------------------------------------------------------------------------- data

DATA_READERS: dict[str, Callable[[Path], tuple]] = {
    "check images": lambda path: ("prepare_data.py", "check", "images", path),
    "check coco": lambda path: ("prepare_data.py", "check", "coco", path),
    "check coco file": lambda path: ("prepare_data.py", "check", "coco", path, "--images", "."),
    "check ade": lambda path: ("prepare_data.py", "check", "ade", path),
    "classes": lambda path: ("prepare_data.py", "classes", path, "classes"),
    "fit_tokenizer": lambda path: ("fit_tokenizer.py", path, "tokens.pth", "--tokens", 2, "--images", 2, "--size", 32),
    "pretrain --data": lambda path: ("pretrain.py", "pretrain.py", "--data", path, "--batch-size", 1),
}
DATA = ("script", "saved", "pickled", "postscript", "traversal", "links", "list", "tagged")


@pytest.mark.parametrize("data", DATA)
def test_no_tool_executes_data(data, place, tmp_path, monkeypatch):
    """A folder's own scripts, PostScript under the name of an image, paths out of an archive, commands in lists."""
    canary = tmp_path / "canary"
    path = write_data(tmp_path, canary)[data]
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\n/usr/bin/touch {canary}\n")  # what Pillow starts
    (programs / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    for tool, arguments in DATA_READERS.items():
        script, *rest = arguments(path)
        rest = [place / "pretrain.py" if argument == "pretrain.py" else argument for argument in rest]
        work = tmp_path / f"work {tool}"
        if script == "pretrain.py":
            if data == "script":
                continue  # its one image would be trained on
            rest += ["--work-dir", "work", "--cfg-options", "train_cfg.max_epochs=2"]
        work.mkdir()
        done = invoke(script, *rest, cwd=work)
        assert not canary.exists(), f"{tool} executed something"
        assert done.returncode in (0, 1, 2), done.stderr


def test_a_label_map_of_postscript_starts_no_program(tmp_path, monkeypatch):
    """mmseg decodes label maps with Pillow, which goes by the contents."""
    data = write_data(tmp_path, tmp_path / "canary")["postscript"]
    (tmp_path / "gs").write_text(f"#!/bin/sh\n/usr/bin/touch {tmp_path / 'canary'}\n")
    (tmp_path / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(DataError, match=r"a\.png"):
        LoadLabels(num_classes=3).transform(dict(seg_map_path=str(data / "a.png"), seg_fields=[]))
    assert not (tmp_path / "canary").exists()
