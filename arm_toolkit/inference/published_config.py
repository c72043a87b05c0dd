"""What a published configuration holds of the one that a model was trained with, and its form in JSON.

It holds the model, and of the test data set the type, the transforms and the classes, under the keys where OpenMMLab
looks for them. Training, paths and the machine of the author stay out.
"""

import math
import re

from mmengine.config import Config

from ..engine.checks import dicts
from ..engine.config_text import PACKAGES, leaves, registered
from ..errors import ConfigError

KEYS = (
    *("default_scope", "custom_imports", "model", "test_dataloader"),
    *("tta_model", "tta_pipeline", "visualizer"),
)
OURS = (*PACKAGES, "mmcv", "mmengine", "torch", "timm", "torchvision")  # whoever reads a folder has these
_UNUSED = {  # arguments that only training or the author's storage needs
    *("init_cfg", "pretrained", "backend_args", "file_client_args", "batch_augments"),
}
DATASET = ("type", "pipeline", "transform", "reduce_zero_label")  # keys of the test data set
VISUALIZER = ("type", "name")  # others could make it write files, or connect to a server
_ANNOTATIONS = ("LoadAnnotations", "LoadPanopticAnnotations", "LoadLabels")
_PATH = re.compile(r"[/~].|[A-Za-z]:[\\/]|\\\\|\w+://")


def published_config(cfg: Config, where: str) -> dict:
    """The parts of a training configuration that a published folder holds, with the `KEYS`.

    Args:
        where: name of the file that holds it, for messages.

    Raises:
        ConfigError: if a part is missing, names a file of this machine, or needs code that a reader does not have.
    """
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{where}: its configuration has no model; give the one of the training with --config")
    scope = cfg.get("default_scope") or "mmengine"
    result = dict(
        default_scope=scope,
        custom_imports=dict(
            imports=[name for name in cfg.custom_imports.imports if name.split(".")[0] in PACKAGES],
            allow_failed_imports=False,
        ),
        model=_model(cfg),
        test_dataloader=dict(dataset=_dataset(cfg, where)),
    )
    if cfg.get("tta_model") and cfg.get("tta_pipeline"):
        result |= dict(tta_model=_useful(cfg.tta_model.to_dict()), tta_pipeline=_transforms(_useful(cfg.tta_pipeline)))
    if (cfg.get("visualizer") or {}).get("type"):
        result["visualizer"] = dict(type=cfg.visualizer.type, name="visualizer")
    _check(result, scope, where)
    return result


def _model(cfg: Config) -> dict:
    model = _useful(cfg.model.to_dict())
    if "train_cfg" in model:
        model["train_cfg"] = None  # some constructors require the argument
    if (model.get("data_preprocessor") or {}).get("type") == "MixupPreprocessor":
        del model["data_preprocessor"]  # mixes training batches, and does nothing else
    return model


def _dataset(cfg: Config, where: str) -> dict:
    """The test data set without its data."""
    for loader in ("test_dataloader", "val_dataloader"):
        for node in dicts((cfg.get(loader) or {}).get("dataset")):
            if "pipeline" in node or "transform" in node:
                return _transforms(_useful({key: node[key] for key in DATASET if key in node}))
    raise ConfigError(
        f"{where}: its configuration has no test_dataloader with a pipeline, so nobody could prepare an image for it"
    )


def _transforms(node: object) -> object:
    """A pipeline without the transforms that load annotations, which a new image does not have."""
    if isinstance(node, dict):
        return {key: _transforms(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        loads = [isinstance(step, dict) and step.get("type") in _ANNOTATIONS for step in node]
        return type(node)(_transforms(step) for step, load in zip(node, loads) if not load)
    return node


def _useful(node: object) -> object:
    """A copy as plain dicts, lists and tuples, without the `_UNUSED` keys."""
    if isinstance(node, dict):
        return {key: _useful(value) for key, value in node.items() if key not in _UNUSED}
    return type(node)(map(_useful, node)) if isinstance(node, list | tuple) else node


def _check(config: dict, scope: str, where: str) -> None:
    known = registered(scope)
    for path, value in leaves({key: config[key] for key in config if key != "custom_imports"}):
        key = ".".join(map(str, path))
        if isinstance(value, str) and _PATH.match(value):
            raise ConfigError(f"{where}: {key}={value!r} names a file of this machine; nobody else has it, remove it")
        package = getattr(known.get(value) if path[-1] == "type" else None, "__module__", "").split(".")[0]
        if package and package not in OURS:
            raise ConfigError(
                f"{where}: {key}={value!r} is defined in {package}, which a reader of the folder does not have; "
                f"published are models of {', '.join(PACKAGES)}"
            )


# ----------------------------------------------------------------------------------------------------- as JSON


def to_json(value: object, key: str = "") -> object:
    """A value for `json.dumps`; a tuple, which JSON does not have, becomes {"tuple": [...]}.

    Raises:
        ConfigError: if a value cannot be written as JSON; names the key.
    """
    if isinstance(value, dict):
        if all(isinstance(name, str) for name in value) and set(value) != {"tuple"}:
            return {name: to_json(item, f"{key}.{name}" if key else name) for name, item in value.items()}
    elif isinstance(value, list | tuple):
        items = [to_json(item, f"{key}.{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    elif isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(f"{key}={value!r} cannot be written as JSON; give text, numbers, lists and dicts with names")


def from_json(value: object) -> object:
    """The inverse of `to_json`."""
    if isinstance(value, dict):
        if set(value) == {"tuple"} and isinstance(value["tuple"], list):
            return tuple(from_json(item) for item in value["tuple"])
        return {key: from_json(item) for key, item in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value
