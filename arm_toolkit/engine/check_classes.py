"""Checks that data sets, heads, label loading, evaluators and checkpoints mean the same classes."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, Registry

from arm_backbone.checkpoint.accounting import shorten
from arm_images.errors import DataError

from ..datasets.annotations import read_categories
from ..errors import ConfigError
from .checks import named_dicts

# types in a configuration, the subclasses that are built in their place, and the modules that register these
OURS = {"CocoDataset": "ARMCocoDataset", "CocoMetric": "ARMCocoMetric", "BaseSegDataset": "ARMSegDataset",
        "ADE20KDataset": "ARMADE20KDataset"}  # fmt: skip
MODULES = {"ARMCocoDataset": "arm_toolkit.datasets.coco", "ARMCocoMetric": "arm_toolkit.evaluation.coco",
           "ARMSegDataset": "arm_toolkit.datasets.segmentation",
           "ARMADE20KDataset": "arm_toolkit.datasets.segmentation"}  # fmt: skip
NO_HEAD = {"backbone", "neck", "rpn_head", "semantic_head"}  # parts of a model whose num_classes counts something else


def use_checked_data(cfg: Config) -> None:
    """Put our subclasses (`OURS`) in the place of mmdet's and mmseg's data sets and evaluators, and import them."""
    found = []
    for part in ("train", "val", "test"):
        for key in (f"{part}_dataloader", f"{part}_evaluator"):
            for _, node in named_dicts(cfg.get(key)):
                name = node.get("type")
                ours = OURS.get(re.sub(r"^mm(det|seg)\.", "", name)) if isinstance(name, str) else None
                if ours:
                    node["type"] = ours
                    found.append(MODULES[ours])
    if found:
        imports = cfg.setdefault("custom_imports", ConfigDict(imports=[], allow_failed_imports=False))
        imports.imports = list(dict.fromkeys(imports.imports + found))
        for module in found:
            import_module(module)


def check_classes(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that data sets, heads, label loading and evaluators agree about classes; fill in evaluators' `ann_file`.

    Args:
        loaders: keys of data loaders, e.g. "train_dataloader".

    Raises:
        ConfigError, DataError: naming the key, its value and what it must be.
    """
    first: tuple[str, list[str], bool] | None = None
    for loader in loaders:
        files = []
        for where, dataset, kind in _datasets(cfg, loader):
            classes = _class_names(dataset, where, kind, cfg.get("default_scope"))
            if classes is None:
                continue
            if hasattr(kind, "COCOAPI") and dataset.get("ann_file"):
                files.append(Path(dataset.get("data_root") or "", dataset["ann_file"]))
                _check_categories(files[-1], classes, where, kind)
            zero = dataset.get("reduce_zero_label", _default(kind, "reduce_zero_label"))
            first = first or (where, classes, zero)
            if classes != first[1]:
                raise ConfigError(
                    f"{where}.metainfo.classes: {shorten(classes)}, but {first[0]} has {shorten(first[1])}; "
                    "give all data sets the same names in the same order"
                )
            if zero != first[2]:
                raise ConfigError(
                    f"{where}.reduce_zero_label={zero}, but {first[2]} in {first[0]}; give all data sets one value"
                )
            for key, node in named_dicts(dataset.get("pipeline"), f"{where}.pipeline"):
                check_number(key, node.get("num_classes"), where, classes)
        _check_evaluator(cfg, loader.replace("dataloader", "evaluator"), loader, files)
    if first is None:
        return
    for key, node in named_dicts(cfg.get("tta_pipeline"), "tta_pipeline"):
        check_number(key, node.get("num_classes"), *first[:2])
    for key, number in head_numbers(cfg):
        check_number(key, number, *first[:2])


def _datasets(cfg: Config, loader: str) -> Iterator[tuple[str, ConfigDict, type]]:
    """The data sets of OpenMMLab in a loader, without the wrappers around them, with their classes."""
    for where, dataset in named_dicts((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset"):
        kind = _registered(DATASETS, dataset.get("type"), cfg.get("default_scope"))
        if kind is not None and hasattr(kind, "METAINFO"):
            yield where, dataset, kind


def _registered(registry: Registry, name: object, scope: str | None) -> type | None:
    if not isinstance(name, str):
        return None
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(name)


def _default(kind: type, argument: str) -> object:
    """The default of an argument of a class, which may pass it on to a base class."""
    for base in kind.__mro__[:-1]:
        parameter = inspect.signature(base.__init__).parameters.get(argument)
        if parameter is not None:
            return None if parameter.default is parameter.empty else parameter.default
    return None


def _class_names(dataset: dict, where: str, kind: type, scope: str | None) -> list[str] | None:
    classes = (dataset.get("metainfo") or {}).get("classes", kind.METAINFO.get("classes"))
    key = f"{where}.metainfo.classes"
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise ConfigError(f"{key}={classes!r} is one text; give a tuple of names, as ({classes!r},)")
        classes = Path(classes).read_text(encoding="utf-8").splitlines()
    if classes is None:
        if scope in ("mmdet", "mmseg"):
            raise ConfigError(f"{key} is missing; give the names of the classes in the order of their labels")
        return None
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes) or not classes:
        raise ConfigError(f"{key}={classes!r}; give the names of the classes, in the order of their labels")
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise ConfigError(f"{key} has {shorten(twice)} more than once; give every class one name")
    return list(classes)


def _check_categories(file: Path, classes: list[str], where: str, kind: type) -> None:
    """Check that a COCO file has the classes; a data set class other than ours also needs them in the file's order."""
    names = [category.get("name") for category in read_categories(file)]
    absent = [name for name in classes if name not in names]
    if absent:
        raise DataError(
            f"{where}.metainfo.classes: {file} has no category {shorten(absent)} (it has {shorten(names)}); "
            "set the classes of all data sets to its names, and num_classes of the heads to their number"
        )
    in_file = [name for name in names if name in classes]
    if in_file != classes and kind.__name__ not in (*OURS, *OURS.values()):
        raise DataError(
            f"{where}.metainfo.classes: {kind.__name__} numbers classes in the order of {file}; "
            f"list them in that order: {shorten(in_file)}"
        )


def check_number(key: str, number: object, where: str, classes: list[str]) -> None:
    """Check that a `num_classes` is the number of classes; `where` names what has these classes."""
    if number is not None and number != len(classes):
        raise ConfigError(
            f"{key}.num_classes={number}, but {where} has {len(classes)} classes ({shorten(classes)}); "
            f"set it to {len(classes)}, or correct metainfo.classes"
        )


def head_numbers(cfg: Config) -> Iterator[tuple[str, object]]:
    """The `num_classes` in a model, by key; of heads that do not give it, their default."""
    for key, node in named_dicts(cfg.get("model"), "model"):
        parts = [part for part in key.split(".") if not part.isdigit()]
        if NO_HEAD & set(parts) or node.get("class_agnostic"):
            continue
        if "num_classes" in node:
            yield key, node["num_classes"]
        elif parts[-1].endswith("head") and parts[-1] != "roi_head":
            kind = _registered(MODELS, node.get("type"), cfg.get("default_scope"))
            default = kind and _default(kind, "num_classes")
            if default is not None:
                yield key, default


def _check_evaluator(cfg: Config, key: str, loader: str, files: list[Path]) -> None:
    """Check that COCO's evaluators read the file of the data set; the file is filled in where none is named."""
    if not files:
        return
    for where, evaluator in named_dicts(cfg.get(key), key):
        named = evaluator.get("ann_file")
        if named is None and len(files) == 1 and evaluator.get("type") in (*OURS, *OURS.values()):
            evaluator["ann_file"] = str(files[0])
        elif named is not None and not any(Path(named).resolve() == file.resolve() for file in files):
            raise ConfigError(
                f"{where}.ann_file={named}, but the data set that it evaluates ({loader}.dataset) reads {files[0]}; "
                f"set both to one file: --cfg-options {where}.ann_file={files[0]}"
            )


def check_checkpoint_classes(file: str, meta: dict, dataset: object, loader: str) -> None:
    """Check that a checkpoint was trained on the classes of a data set, where it names them.

    Raises:
        ConfigError: if names, order or `reduce_zero_label` differ.
    """
    trained, given = meta.get("dataset_meta"), getattr(dataset, "metainfo", None)
    if not isinstance(trained, dict) or not isinstance(given, dict):
        return
    for key in ("classes", "reduce_zero_label"):
        of_file, here = trained.get(key), given.get(key)
        if of_file is None or here is None:
            continue
        of_file, here = (list(value) if isinstance(value, list | tuple) else value for value in (of_file, here))
        if of_file != here:
            before, now = (shorten(value) if isinstance(value, list) else value for value in (of_file, here))
            raise ConfigError(
                f"{loader}.dataset: {key} is {now}, but {file} was trained with {before}; set it as in training"
            )
