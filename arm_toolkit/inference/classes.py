"""The names and colours of a model's classes: from its weights, its configuration, or made up."""

import colorsys
import inspect
from dataclasses import dataclass

from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..engine.check_classes import check_checkpoint_classes, check_number, head_numbers
from ..engine.checks import named_dicts
from ..errors import ConfigError
from .build import Trained

Colour = tuple[int, int, int]
LOADERS = ("test_dataloader", "val_dataloader", "train_dataloader")


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: in the order of their numbers.
        palette: a colour (R, G, B), 0 to 255, for each.
        reduce_zero_label: in label maps on disk 0 means "ignored", and class k is stored as k + 1.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    reduce_zero_label: bool


def find_classes(trained: Trained) -> Classes:
    """The classes that a model was trained on.

    Names come from the weights, where they hold some, as those of our trainings do, else from the configuration's data
    set. If neither has any, classes are called "class 0", "class 1", ..., and a warning says so.

    Raises:
        ConfigError: if weights, configuration and heads disagree, or no number of classes is found.
    """
    stated, where = _stated(trained)
    check_checkpoint_classes(trained.where, dict(dataset_meta=trained.meta), _Stated(stated), where)
    meta = stated | {key: value for key, value in trained.meta.items() if value is not None}
    numbers = dict(head_numbers(trained.cfg))
    names = meta.get("classes")
    if names is None:
        if not numbers:
            raise ConfigError(f"{trained.where}: neither its configuration nor its weights name the classes")
        names = [f"class {number}" for number in range(next(iter(numbers.values())))]
        print_log(f"{trained.where}: no names of classes; they are called 'class 0', 'class 1', ...", "current", 30)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{trained.where}: classes={names!r}: give the names of the classes, in their order")
    for key, number in numbers.items():
        check_number(key, number, trained.where, list(names))
    return Classes(tuple(names), _palette(meta.get("palette"), len(names)), bool(meta.get("reduce_zero_label")))


class _Stated:
    """A stand-in for a data set that is not built, of which only `metainfo` is read."""

    def __init__(self, metainfo: dict) -> None:
        self.metainfo = metainfo


def _stated(trained: Trained) -> tuple[dict, str]:
    """What the configuration's first data set states about its classes, and the key of its loader."""
    for loader in LOADERS:
        for _, dataset in named_dicts((trained.cfg.get(loader) or {}).get("dataset"), loader):
            found = _metainfo(dataset, trained.scope)
            if found.get("classes"):
                return found, loader
    return {}, LOADERS[0]


def _metainfo(dataset: ConfigDict, scope: str) -> dict:
    kind = None
    if isinstance(dataset.get("type"), str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(dataset["type"])
    found = dict(getattr(kind, "METAINFO", None) or {}) | dict(dataset.get("metainfo") or {})
    if kind is not None:
        parameter = inspect.signature(kind).parameters.get("reduce_zero_label")
        found["reduce_zero_label"] = dataset.get("reduce_zero_label", parameter.default if parameter else False)
    return found


def _palette(given: object, count: int) -> tuple[Colour, ...]:
    """The given colours if there are as many as classes, else `distinct_colours`.

    mmdet gives the 80 colours of COCO to a data set of any classes; among the first of them are two dark reds.
    """
    if isinstance(given, list | tuple) and len(given) == count:
        colours = [tuple(colour) if isinstance(colour, list | tuple) else () for colour in given]
        if all(len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c) for c in colours):
            return tuple(colours)
    return distinct_colours(count)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Bright colours in the order of a golden-ratio walk around the hues, so that the first ones are far apart."""
    tones = ((0.85, 0.95), (0.6, 0.8), (0.95, 0.65))  # saturation and brightness
    colours = []
    for number in range(count):
        tone = tones[number % 3] if number > 5 else tones[0]
        colours.append(tuple(round(255 * v) for v in colorsys.hsv_to_rgb(number * 0.61803399 % 1, *tone)))
    return tuple(colours)
