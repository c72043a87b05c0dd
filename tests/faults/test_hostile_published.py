"""Published folders of somebody else: each trick is refused by name, and nothing in a folder is executed."""

import builtins
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.checkpoint.files import read_checkpoint
from arm_backbone.checkpoint.folder import sha256_of
from arm_toolkit.errors import ConfigError
from arm_toolkit.inference import load
from arm_toolkit.inference.build import build
from arm_toolkit.inference.published import is_published, read_published
from tests.helpers.hostile import CHECKPOINTS
from tests.helpers.json_files import change_json
from tests.helpers.published import publish_small
from tests.helpers.tools import invoke

pytestmark = pytest.mark.xdist_group("published")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def published(shapes, tmp_path_factory) -> Path:
    return publish_small("seg", shapes, tmp_path_factory.mktemp("hostile_published")).folder


@pytest.fixture
def folder(published, tmp_path) -> Path:
    shutil.copytree(published, tmp_path / "folder")
    return tmp_path / "folder"


def refused(folder: Path, message: str) -> None:
    """Whether building the model stops with this line."""
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        build(folder)
    assert len(str(error.value).splitlines()) == 1
    assert is_published(folder) or not (folder / CONFIG).is_file()


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    change_json(folder / CONFIG, lambda content: change(content["arm"]))


def resign(folder: Path) -> None:
    """State the SHA-256 of the weights that are there, as an attacker would."""
    edit(folder, lambda ours: ours.update(sha256=sha256_of(folder / WEIGHTS)))


# ----------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.endswith(".safetensors")])
def test_a_pickle_called_safetensors(name, folder):
    canary = folder.parent / "canary"
    (folder / WEIGHTS).write_bytes(CHECKPOINTS[name](canary))
    refused(folder, WEIGHTS)
    resign(folder)
    refused(folder, f"{WEIGHTS} (holds a pickle or an archive|is not a complete safetensors file)")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "a/b/x.pkl", "arrays.npz", "setup.py", "X.PTH"])
def test_a_file_that_executes_beside_the_weights(name, folder):
    canary = folder.parent / "canary"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(CHECKPOINTS["system.pth"](canary))
    refused(folder, f"{name} could execute code when a program reads it")
    assert not canary.exists()


@pytest.mark.parametrize("content", ["system.pth", "system_in_zip.pth", "exec.pth", "eval.pth"])
def test_a_pickle_called_image(content, folder):
    (folder / "example.png").write_bytes(CHECKPOINTS[content](folder.parent / "canary"))
    refused(folder, "example.png holds a pickle or an archive, not what its name says")
    assert not (folder.parent / "canary").exists()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "README.md", "further"])
def test_a_link_that_leaves_the_folder(name, folder):
    outside = folder.parent / "outside"
    if name == "further":
        (folder / "sub").mkdir()
        (folder / "sub/a.txt").symlink_to("../../outside")
        outside.write_text("secret")
    else:
        os.replace(folder / name, outside)
        (folder / name).symlink_to("step")
        (folder / "step").symlink_to(outside)
    refused(folder, f"is a link to {outside}, outside of the folder")


def test_a_link_in_a_circle_and_one_within(folder):
    os.replace(folder / WEIGHTS, folder / "weights.safetensors")
    (folder / WEIGHTS).symlink_to("weights.safetensors")
    assert read_published(folder).task == "segmentation"
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    refused(folder, "is a link that leads nowhere")


def test_a_pipe_and_a_flood_of_files(folder):
    os.mkfifo(folder / "pipe.txt")
    refused(folder, "pipe.txt is a pipe or a device")
    os.unlink(folder / "pipe.txt")
    (folder / "many").mkdir()
    for number in range(1001):
        (folder / "many" / str(number)).touch()
    refused(folder, "has more than 1000 files")


def test_the_folder_is_not_one(folder, tmp_path):
    for name in (WEIGHTS, CONFIG):
        other = tmp_path / f"without {name}"
        shutil.copytree(folder, other)
        (other / name).unlink()
        refused(other, name)
    with pytest.raises(CheckpointError, match="absent is not a folder"):
        read_published(tmp_path / "absent")


# --------------------------------------------------------------------------------------------------- the weights


def test_a_wrong_hash(folder):
    state = load_file(folder / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in state.items() if tensor.is_floating_point()}, folder / WEIGHTS)
    message = f"{WEIGHTS} is not the file that was published: its SHA-256 is"
    refused(folder, message)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)  # as the initial weights of a training
    for wrong in (None, 1, "0", "x" * 64, True):
        edit(folder, lambda ours, wrong=wrong: ours.update(sha256=wrong))
        refused(folder, "SHA-256")


@pytest.mark.parametrize("name", ["missing", "unknown", "shape", "nan", "type", "none"])
def test_weights_that_do_not_fit(name, folder):
    state = load_file(folder / WEIGHTS)
    key = "decode_head.conv_seg.weight"
    if name == "missing":
        del state[key]
    elif name == "unknown":
        key = "decode_head.more.weight"
        state[key] = torch.ones(1)
    elif name == "shape":
        state[key] = torch.ones(2, 2)
    elif name == "nan":
        state[key].fill_(torch.nan)
    elif name == "type":
        state[key] = state[key].long()
    else:
        state = {}
    save_file(state, folder / WEIGHTS)
    resign(folder)
    refused(folder, "holds no tensors" if name == "none" else f"{WEIGHTS} (does not fit|cannot be used).*{key}")


# --------------------------------------------------------------------------------------------- the configuration


def model(key: str, value: object) -> Callable[[dict], object]:
    return lambda ours: ours["config"]["model"].update({key: value})


def dataset(key: str, value: object) -> Callable[[dict], object]:
    return lambda ours: ours["config"]["test_dataloader"]["dataset"].update({key: value})


CONFIGURATIONS: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown type": (model("type", "NoSuchModel"), "arm.config.model.type='NoSuchModel' is not registered"),
    "unknown type inside": (model("neck", dict(type="Evil")), "arm.config.model.neck.type='Evil' is not registered"),
    "dotted type": (model("type", "os.system"), "model.type='os.system' is not the plain name of a registered type"),
    "type of a module": (
        model("neck", dict(type="subprocess.Popen", args="id")),
        "'subprocess.Popen' is not the plain",
    ),
    "type of numbers": (model("type", 3), "model.type=3"),
    "type of a list": (model("type", ["EncoderDecoder"]), "model.type=.*EncoderDecoder"),
    "transform": (dataset("pipeline", [dict(type="builtins.exec")]), "'builtins.exec' is not the plain name"),
    "unknown transform": (dataset("pipeline", [dict(type="Exec")]), "pipeline.0.type='Exec' is not registered"),
    "imports": (
        lambda ours: ours["config"]["custom_imports"].update(imports=["antigravity"]),
        "custom_imports name 'antigravity'; imported are only modules of",
    ),
    "imports of a path": (
        lambda ours: ours["config"]["custom_imports"].update(imports=["arm_backbone/../evil"]),
        "custom_imports name",
    ),
    "imports of another kind": (lambda ours: ours["config"].update(custom_imports=3), "custom_imports=3"),
    "scope": (lambda ours: ours["config"].update(default_scope="os"), "default_scope='os'"),
    "scope inside": (model("_scope_", "os"), "_scope_='os'"),
    "expression": (model("align", "__import__('os').system('id')"), "looks like code"),
    "pickled weights": (model("class_weight", "a.pkl"), "'a.pkl' is a file that could execute code"),
    "further key": (lambda ours: ours["config"].update(train_dataloader={}), "config has the key 'train_dataloader'"),
    "a path of data": (dataset("data_root", "/etc"), "test_dataloader.dataset has the key 'data_root'"),
    "a visualizer that writes": (
        lambda ours: ours["config"].update(
            visualizer=dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
        ),
        "arm.config.visualizer has the key 'vis_backends'",
    ),
    "reserved key": (lambda ours: ours["config"].update(filename="x"), "config has the key 'filename'"),
    "no model": (lambda ours: ours["config"].pop("model"), "arm.config.model is None, not an object"),
    "a list for a model": (lambda ours: ours["config"].update(model=[]), r"arm.config.model is \[\], not an object"),
    "a text for a pipeline": (dataset("pipeline", "x"), "test_dataloader.dataset.pipeline is not a list"),
    "no data set": (lambda ours: ours["config"].update(test_dataloader={}), "expected an object with the one key"),
    "a list for a configuration": (lambda ours: ours.update(config=[]), "arm.config is a list, not an object"),
    "format": (lambda ours: ours.update(format=2), "arm.format=2, this version reads 1"),
    "format of truth": (lambda ours: ours.update(format=True), "arm.format=True"),
    "task": (lambda ours: ours.update(task="rm"), "arm.task='rm': give one of detection"),
    "task of a list": (lambda ours: ours.update(task=[]), r"arm.task=\[\]"),
    "classes": (lambda ours: ours.update(classes="abcd"), "arm.classes: expected a list of names"),
    "classes of numbers": (lambda ours: ours.update(classes=[1, 2, 3, 4]), "arm.classes: expected a list of names"),
    "a class twice": (lambda ours: ours.update(classes=["a", "b", "a", "c"]), "arm.classes: 'a' is there twice"),
    "a class that clears the terminal": (
        lambda ours: ours.update(classes=["a", "b", "\x1b[2J", "c"]),
        r"'\\x1b\[2J' is not a readable name",
    ),
    "too few classes": (lambda ours: ours.update(classes=["a"], palette=None), "num_classes=4, but"),
    "palette": (lambda ours: ours.update(palette=[[0, 0, 0]]), "arm.palette: expected null, or"),
    "palette of text": (lambda ours: ours.update(palette="red!"), "arm.palette"),
    "palette of floats": (lambda ours: ours.update(palette=[[0.5, 0, 0]] * 4), "arm.palette"),
    "gigantic": (
        lambda ours: ours["config"]["model"]["decode_head"].update(channels=10**9),
        "does not fit the model|cannot be built",
    ),
    "argument": (model("colour", 1), "model.colour=1: EncoderDecoder takes no such argument"),
    "negative": (lambda ours: ours["config"]["model"]["backbone"]["arch"].update(num_layers=-3), ""),
    "nested": (model("neck", eval("[" * 90 + "]" * 90)), ""),  # noqa: S307
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_is_more_or_less_than_data(case, folder):
    change, message = CONFIGURATIONS[case]
    edit(folder, change)
    refused(folder, message)


USED = {
    "a mode that is none": (lambda config: config["model"]["test_cfg"].update(mode="x"), "its model fails on an image"),
    "no packing": (
        lambda config: config["test_dataloader"]["dataset"]["pipeline"].pop(),
        "must end with a transform that packs inputs",
    ),
}


@pytest.mark.parametrize("case", USED)
def test_values_that_only_an_image_finds(case, folder):
    change, message = USED[case]
    edit(folder, lambda ours: change(ours["config"]))
    predictor = load(folder)
    with pytest.raises(ConfigError, match=message) as error:
        predictor(np.zeros((60, 90, 3), np.uint8))
    assert str(folder) in str(error.value)


JSON = {
    "text": (b"hello", "is not JSON"),
    "a pickle": (b"\x80\x04.", "config.json holds a pickle"),
    "nothing": (b"", "is not JSON"),
    "a list": (b"[]", "holds a list, not an object"),
    "another program's": (b'{"architecture": "resnet50", "pretrained_cfg": {}}', "has no object 'arm'"),
    "a list inside": (b'{"arm": []}', "has no object 'arm'"),
    "not utf-8": (b'{"arm": "\xff"}', "is not JSON"),
    "no number": (b'{"arm": NaN}', "NaN is not a JSON number"),
    "deep": (b"[" * 10**5 + b"]" * 10**5, "is not JSON"),
    "huge": (b" " * (33 * 2**20), "has 34603008 bytes; a configuration has at most"),
    "a long number": (b'{"arm": ' + b"9" * 10_000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("case", JSON)
def test_a_config_json_that_is_none(case, folder):
    content, message = JSON[case]
    (folder / CONFIG).write_bytes(content)
    refused(folder, message)


# ------------------------------------------------------------------------------------------- nothing is executed


def test_loading_executes_no_code_of_the_folder(folder, tmp_path, monkeypatch, shapes):
    """With eval, exec and pickle out of order the folder loads all the same, and of its modules none is imported."""
    load(folder)  # imports what is installed
    opened, seen = [], set(sys.modules)

    def record(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            opened.append(Path(arguments[0]).name)

    for name in ("__init__", "arm_backbone", "EncoderDecoder", "json"):
        (folder / f"{name}.txt").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(folder)
    _AUDIT.append(record)
    executing = ((builtins, "eval"), (builtins, "exec"), (os, "system"), (pickle, "load"), (pickle, "loads"))
    with monkeypatch.context() as patch:
        for module, name in executing:
            patch.setattr(module, name, forbidden)
        predictor = load(folder)
    _AUDIT.clear()
    image = next((shapes / "coco/val2017").iterdir())
    assert predictor(image).labels.shape == (96, 96)
    assert set(opened) >= {CONFIG, WEIGHTS} and not (tmp_path / "canary").exists()
    files = [getattr(sys.modules[name], "__file__", None) or "" for name in set(sys.modules) - seen]
    assert not [file for file in files if file.startswith(str(folder))]


def forbidden(*_) -> None:
    raise AssertionError("executed")


_AUDIT: list[Callable] = []
sys.addaudithook(lambda event, arguments: [record(event, arguments) for record in _AUDIT])


def test_tools_refuse_by_name(folder, tmp_path, shapes):
    (folder / "extra.pth").write_bytes(CHECKPOINTS["system.pth"](tmp_path / "canary"))
    done = invoke("predict.py", folder, shapes / "coco/val2017", "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "extra.pth" in done.stderr
    (folder / "extra.pth").unlink()
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | dict(arm=config["arm"] | dict(sha256="0" * 64))))
    done = invoke("convert_checkpoint.py", folder, "a.pth", "--to", "backbone", cwd=tmp_path)
    assert done.returncode == 2 and "is not the file that was published" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"folder"}
