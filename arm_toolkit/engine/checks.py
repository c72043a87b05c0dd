"""Checks a configuration before a run: names, arguments, data paths, classes and sizes."""

import difflib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmengine.registry
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, METRICS, Registry
from timm.layers import to_2tuple

from arm_images.errors import DataError

from ..datasets.class_images import class_names
from ..errors import ConfigError, one_line, user_errors
from .options import suggestion

ACCEPT_ANYTHING = {"CheckpointHook": HOOKS, "IoUMetric": METRICS}  # their **kwargs ignore unknown arguments


def named_dicts(node: object, name: str = "") -> Iterator[tuple[str, ConfigDict]]:
    """Yield each dict inside a configuration with its dotted name, the outermost first."""
    is_dict = isinstance(node, dict | Config)
    if is_dict:
        yield name, node
    if is_dict or isinstance(node, list | tuple):
        for key, value in node.items() if is_dict else enumerate(node):
            yield from named_dicts(value, f"{name}.{key}" if name else str(key))


def dicts(node: object) -> Iterator[ConfigDict]:
    """Yield each dict inside a configuration, the outermost first."""
    for _, found in named_dicts(node):
        yield found


@contextmanager
def config_errors(cfg: Config, what: str) -> Iterator[None]:
    """Turn errors of constructors into a ConfigError that names the key, or `what` if the key cannot be found."""
    try:
        yield
    except user_errors():
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, ImportError) as error:
        message = _unknown_type(cfg, error) or _unknown_argument(cfg, error) or f"{what}: {one_line(error)}"
        raise ConfigError(message) from error


def _unknown_type(cfg: Config, error: Exception) -> str | None:
    """Error message for a `type` that mmengine does not find in its registry."""
    found = re.search(r"(\w+) is not in the (\S+)::([\w -]+) registry", str(error))
    if not found:
        return None
    name, scope, kind = found.groups()
    places = [where for where, node in named_dicts(cfg) if node.get("type") == name]
    known: set[str] = set()
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry) and registry.name == kind:
            known |= {*registry.module_dict, *registry.children.get(scope, registry).module_dict}
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else "correct it, or add its module to custom_imports"
    return f"{places[0] if places else kind}.type={name!r}: no {kind} has this name; {hint}"


def _unknown_argument(cfg: Config, error: Exception) -> str | None:
    """Error message for an argument that a constructor does not take."""
    found = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not found:
        return None
    owner, key = found.groups()
    places = [(where, node) for where, node in named_dicts(cfg) if key in node]
    if not places:
        return None
    where, node = next((place for place in places if "type" in place[1]), places[0])
    return f"{where}.{key}={node[key]!r}: {node.get('type', owner)} takes no such argument; correct or remove it"


def check_data_paths(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the folders and annotation files of some data loaders exist.

    Args:
        loaders: keys of data loaders, e.g. "train_dataloader".

    Raises:
        DataError: naming the first path that does not exist.
        ConfigError: if an evaluation would skip unreadable images.
    """
    for loader in loaders:
        for where, dataset in named_dicts((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset"):
            if "data_root" in dataset:
                _check_dataset(dataset, where)
            elif dataset.get("on_error") == "skip" and loader != "train_dataloader":
                raise ConfigError(f"{where}.on_error='skip': an evaluation cannot skip images; give 'raise'")
            elif "path" in dataset and not Path(dataset["path"]).exists():
                raise DataError(
                    f"{loader}.dataset.path: {dataset['path']} does not exist; "
                    "give a folder of images, or a text file with one path per line"
                )
    for key in ("val_evaluator", "test_evaluator"):
        for evaluator in dicts(cfg.get(key)):
            if f"{key.split('_')[0]}_dataloader" in loaders and evaluator.get("ann_file"):
                if not Path(evaluator["ann_file"]).is_file():
                    raise DataError(
                        f"{key}.ann_file: {evaluator['ann_file']} does not exist; set --cfg-options data_root=PATH"
                    )


def _check_dataset(dataset: dict, where: str) -> None:
    root = Path(dataset["data_root"] or "")
    if not root.is_dir():
        raise DataError(f"{where}.data_root: {root} does not exist; set --cfg-options data_root=PATH")
    if dataset.get("ann_file") and not (root / dataset["ann_file"]).is_file():
        raise DataError(f"{where}.ann_file: {root / dataset['ann_file']} does not exist; check ann_file and data_root")
    for key, folder in (dataset.get("data_prefix") or {}).items():
        if folder and not (root / folder).is_dir():
            raise DataError(
                f"{where}.data_prefix.{key}: {root / folder} does not exist; check data_prefix and data_root"
            )


def check_arguments(cfg: Config) -> None:
    """Refuse unknown arguments of the types whose constructors would ignore them (`ACCEPT_ANYTHING`).

    Raises:
        ConfigError: naming the first unknown argument.
    """
    for where, node in named_dicts(cfg):
        kind = node.get("type")
        if isinstance(kind, str) and kind in ACCEPT_ANYTHING:
            with ACCEPT_ANYTHING[kind].switch_scope_and_registry(cfg.get("default_scope")) as registry:
                found = registry.get(kind)
            if found is None:  # of another scope; building it says so
                continue
            bases = found.__mro__[:-1]
            known = {name for base in bases for name in inspect.signature(base.__init__).parameters}
            for key in node.keys() - known - {"type"}:
                hint = suggestion(key, known - {"self", "kwargs"})
                raise ConfigError(f"{where}.{key}={node[key]!r}: {kind} takes no such argument{hint}")


def check_image_size(cfg: Config) -> None:
    """Check that a pretraining model's `img_size` is the size of its data set's images.

    Raises:
        ConfigError: if they differ.
    """
    model, dataset = cfg.get("model") or {}, (cfg.get("train_dataloader") or {}).get("dataset") or {}
    if "img_size" in model and "size" in dataset:
        of_model, of_data = model["img_size"], dataset["size"]
        if to_2tuple(of_model) != to_2tuple(of_data):
            raise ConfigError(
                f"model.img_size={of_model} and train_dataloader.dataset.size={of_data} differ; set both to one value"
            )


def check_num_classes(cfg: Config) -> None:
    """Check that a classifier has as many classes as its training data has class folders.

    Raises:
        ConfigError: if the numbers differ.
        DataError: if there are no class folders.
    """
    dataset = (cfg.get("train_dataloader") or {}).get("dataset") or {}
    if dataset.get("type") != "ClassFolder":
        return
    folder = Path(dataset.data_root) / dataset.get("classes_from", "train")
    count = len(class_names(folder)) if folder.is_dir() else 0
    keys = {f"model.{key}": node for key, node in named_dicts(cfg.model) if "num_classes" in node}
    wrong = [
        f"{key.rstrip('.')}.num_classes={node.num_classes}" for key, node in keys.items() if node.num_classes != count
    ]
    if count and wrong:
        raise ConfigError(f"{', '.join(wrong)}, but {folder} has {count} class folders; set it to {count}")


def pretrained_backbone(cfg: Config) -> ConfigDict | None:
    """The model's first dict with an `init_cfg` of type "Pretrained" (the ARM backbone or classifier), or None."""
    for node in dicts(cfg.get("model")):
        init = node.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            return node
    return None
