"""Reads a published folder as data: configuration, classes and verified weights; nothing in it is executed.

A folder holds `config.json` and `model.safetensors`, and for people a model card and perhaps an image and the log of
the metrics. See docs/publishing.md.
"""

import copy
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from safetensors import safe_open

from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.checkpoint.folder import CONFIG, KEY, contained, read_config, verified_weights
from arm_backbone.checkpoint.hub import is_hub_name, local_path, parse_name

from ..engine.check_classes import check_classes
from ..engine.config import config_from_data
from ..engine.config_text import buildable
from ..engine.structure import check_structure
from ..errors import ConfigError, one_line
from .published_config import DATASET, KEYS, VISUALIZER, from_json

FORMAT = 1  # of our part of config.json
TASKS = ("detection", "segmentation", "classification", None)
MAX_FILES = 1000
# files that some program executes or unpickles when it reads them
EXECUTABLE = {
    *(".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".h5", ".keras"),
    *(".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".bat", ".ipynb", ".exe", ".jar"),
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".whl", ".egg"),
}
_PICKLES = tuple(b"\x80" + bytes([version]) for version in range(2, 6))
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Published:
    """The content of a published folder.

    Attributes:
        folder: where it is on this machine.
        config: the model, the transforms of the test, and what they need, as data; every type is registered.
            Transforms and classes are where OpenMMLab looks for them: in `test_dataloader.dataset` and
            `test_pipeline`.
        weights: safetensors file, whose SHA-256 is verified.
        task: "detection", "segmentation" or "classification"; None for a backbone.
        classes: names by label; empty if they are not known.
        palette: a colour [red, green, blue] for each class, or None.
    """

    folder: Path
    config: Config
    weights: Path
    task: str | None
    classes: list[str]
    palette: list | None


def is_published(path: str | os.PathLike) -> bool:
    """Whether a path is to be read with `read_published`: a folder with a config.json, or a repository on the hub."""
    if is_hub_name(path):
        return parse_name(path).file is None
    return Path(path, CONFIG).is_file()


def read_published(folder: str | os.PathLike) -> Published:
    """Read a published folder, or a repository on the hub, and check everything in it.

    Modules of the toolkit that the configuration names are imported, and types are looked up; nothing is built.

    Raises:
        CheckpointError: if a file is missing, is not what was published, or could execute code.
        ConfigError: if the configuration is more than data, or names what is not registered; names file and key.
    """
    folder = Path(local_path(folder))
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give one that tools/publish.py has written")
    _check_files(folder)
    ours = _our_part(folder)
    weights = verified_weights(folder)
    _check_header(weights)
    where = str(folder / CONFIG)
    task, classes, palette = ours.get("task"), ours.get("classes"), ours.get("palette")
    if task not in TASKS:
        raise ConfigError(f"{where}: {KEY}.task={task!r}: give one of {', '.join(filter(None, TASKS))}, or null")
    _check_class_names(classes, where)
    _check_palette(palette, len(classes), where)
    try:
        config = _config(from_json(ours.get("config")), where)
    except RecursionError:
        raise ConfigError(f"{where}: {KEY}.config is nested too deeply") from None
    dataset = config.test_dataloader.dataset
    dataset.metainfo = dict(classes=tuple(classes), palette=palette)
    if "pipeline" in dataset:
        config.test_pipeline = copy.deepcopy(dataset.pipeline)
    _check_number(config, classes, where)
    return Published(folder, config, weights, task, classes, palette)


# ---------------------------------------------------------------------------------------------------- the files


def _check_files(folder: Path) -> None:
    """Refuse files that a program could execute, whatever they are called, and links that leave the folder."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in (".git", ".cache")]  # of git and of the hub's downloads
        for name in (*names, *folders):
            relative = os.path.relpath(os.path.join(parent, name), folder)
            path = contained(folder, relative)
            count += 1
            if count > MAX_FILES:
                raise CheckpointError(f"{folder} has more than {MAX_FILES} files; give a published folder")
            if name in folders:
                continue
            if path.suffix.lower() in EXECUTABLE:
                raise CheckpointError(
                    f"{path} could execute code when a program reads it; a published folder needs no such file: "
                    "remove it, or do not trust the folder"
                )
            if path.exists() and not path.is_file():
                raise CheckpointError(f"{path} is a pipe or a device, not a file; remove it")
            if path.is_file() and _is_disguised(path):
                raise CheckpointError(
                    f"{path} holds a pickle or an archive, not what its name says, and could execute code when a "
                    "program reads it; do not trust the folder"
                )


def _is_disguised(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    return start.startswith(_PICKLES) or (start == _ZIP and path.suffix != ".pt2")


def _check_header(weights: Path) -> None:
    try:
        with safe_open(weights, "pt") as file:
            empty = not list(file.keys())
    except Exception as error:  # noqa: BLE001 safetensors raises its own errors, and others for broken headers
        raise CheckpointError(f"{weights} is not a complete safetensors file ({one_line(error)})") from None
    if empty:
        raise CheckpointError(f"{weights} holds no tensors; download or publish the folder again")


# -------------------------------------------------------------------------------------------- the configuration


def _our_part(folder: Path) -> dict:
    ours, file = read_config(folder).get(KEY), folder / CONFIG
    if not isinstance(ours, dict):
        raise CheckpointError(f"{file} has no object {KEY!r}; give a folder that tools/publish.py has written")
    if ours.get("format") != FORMAT or isinstance(ours["format"], bool):
        raise CheckpointError(f"{file}: {KEY}.format={ours.get('format')!r}, this version reads {FORMAT}; update one")
    digest = ours.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64:
        raise CheckpointError(f"{file}: {KEY}.sha256={digest!r} is not a SHA-256; publish it again")
    return ours


def _config(data: object, where: str) -> Config:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {KEY}.config is a {type(data).__name__}, not an object")
    _check_keys(data, KEYS, "config", where)
    for key in ("model", "test_dataloader"):
        if not isinstance(data.get(key), dict):
            raise ConfigError(f"{where}: {KEY}.config.{key} is {data.get(key)!r}, not an object")
    dataset = data["test_dataloader"].get("dataset")
    if not isinstance(dataset, dict) or set(data["test_dataloader"]) != {"dataset"}:
        raise ConfigError(f"{where}: {KEY}.config.test_dataloader: expected an object with the one key dataset")
    _check_keys(dataset, DATASET, "config.test_dataloader.dataset", where)
    if data.get("visualizer") is not None:
        _check_keys(data["visualizer"], VISUALIZER, "config.visualizer", where)
    for key, kind in (("pipeline", list), ("transform", dict)):
        if not isinstance(dataset.get(key, kind()), kind):
            raise ConfigError(f"{where}: {KEY}.config.test_dataloader.dataset.{key} is not a {kind.__name__}")
    config = config_from_data(data, where)
    try:
        check_structure(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {KEY}.config: {error}") from None
    parts = {key: value for key, value in config.to_dict().items() if key not in ("default_scope", "custom_imports")}
    scope = config.get("default_scope") or "mmengine"
    kept = {key: config[key] for key in ("default_scope", "custom_imports") if key in config}
    return Config(buildable(parts, f"{KEY}.config", where, scope) | kept)


def _check_keys(node: object, allowed: tuple[str, ...], name: str, where: str) -> None:
    unknown = [key for key in node if key not in allowed] if isinstance(node, dict) else [node]
    if unknown:
        raise ConfigError(f"{where}: {KEY}.{name} has the key {unknown[0]!r}; expected are {', '.join(allowed)}")


def _check_class_names(classes: object, where: str) -> None:
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise ConfigError(f"{where}: {KEY}.classes: expected a list of names")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    hidden = [name for name in classes if any(unicodedata.category(char) == "Cc" for char in name)]
    if twice or hidden:
        what = "is there twice" if twice else "is not a readable name"
        raise ConfigError(f"{where}: {KEY}.classes: {(twice or hidden)[0]!r} {what}")


def _check_palette(palette: object, classes: int, where: str) -> None:
    if palette is None:
        return
    if not isinstance(palette, list) or len(palette) != classes or not all(map(_is_colour, palette)):
        raise ConfigError(f"{where}: {KEY}.palette: expected null, or [red, green, blue] in 0..255 for every class")


def _is_colour(colour: object) -> bool:
    whole = isinstance(colour, list) and len(colour) == 3
    return whole and all(type(part) is int and 0 <= part <= 255 for part in colour)


def _check_number(config: Config, classes: list[str], where: str) -> None:
    """Check that the heads have as many classes as there are names."""
    if not classes:
        return
    try:
        check_classes(config, ("test_dataloader",))
    except ConfigError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None
    number = config.model.get("num_classes")
    if number is not None and number != len(classes):
        raise ConfigError(f"{where}: {KEY}.config.model.num_classes={number!r}, but there are {len(classes)} classes")
