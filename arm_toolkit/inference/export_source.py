"""What an export starts from: a model, what its images must be, and what its classes are."""

from dataclasses import dataclass
from pathlib import Path

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from torch import nn

import arm_backbone  # noqa: F401 registers its models
from arm_backbone.arm import find_trunk
from arm_backbone.checkpoint.hub import local_path

from ..engine.checks import dicts, named_dicts
from ..errors import ConfigError, one_line, user_errors
from .build import Trained, build_module, find
from .classes import find_classes

LIKELY_SIZE = (224, 224)  # of a model that states none


@dataclass
class Source:
    """A model to export.

    Attributes:
        where: its name, for messages.
        module: in evaluation mode, on the CPU.
        mean, std: of each channel, on the scale 0 to 255, in the order `channels`.
        channels: the order that the model takes, "RGB" or "BGR".
        resize: how images are resized and cropped before, in the words of the configuration; may be empty.
        divisor: sides are padded with zeros to multiples of this, right and below, after normalization; 1: no padding.
        size: (height, width) of its usual images in pixels.
        images: the folder of its test images, if there is one.
        trained: its configuration, for the names of its classes; None for a model of timm.
    """

    where: str
    module: nn.Module
    mean: list[float]
    std: list[float]
    channels: str = "RGB"
    resize: dict | None = None
    divisor: int = 1
    size: tuple[int, int] = LIKELY_SIZE
    images: Path | None = None
    trained: Trained | None = None

    def classes(self) -> dict:
        """Names and colours of the classes, None if the model does not say.

        Raises:
            ConfigError: if weights, configuration and heads disagree.
        """
        if self.trained is None:
            return dict(classes=None, palette=None)
        found = find_classes(self.trained)
        return dict(classes=list(found.names), palette=[list(colour) for colour in found.palette])


def find_source(model: str, checkpoint: str | None = None) -> Source:
    """Find and build a model.

    Args:
        model: as in `arm_toolkit.inference.load`, or a name in timm's registry.
        checkpoint: the weights, for a configuration or a name of timm.

    Raises:
        ConfigError, CheckpointError: naming what is missing or does not fit, and the remedy.
    """
    if timm.is_model(model):
        return _from_timm(model, checkpoint)
    trained = find(model, checkpoint)
    module = build_module(trained)
    given, images = _preprocessing(trained), _test_images(trained)
    size = _usual_size(module, given["resize"])
    return Source(trained.where, module, **given, size=size, images=images, trained=trained)


def _from_timm(name: str, checkpoint: str | None) -> Source:
    overlay = dict(file=local_path(checkpoint)) if checkpoint else None
    if overlay and not Path(overlay["file"]).is_file():
        raise ConfigError(f"--checkpoint {checkpoint} does not exist")
    try:
        module = timm.create_model(name, pretrained=checkpoint is not None, pretrained_cfg_overlay=overlay).eval()
    except user_errors():
        raise
    except Exception as error:  # noqa: BLE001 any constructor, any file
        raise ConfigError(f"{name}: {f'{checkpoint}: ' if checkpoint else ''}{one_line(error)}") from error
    cfg = module.pretrained_cfg
    keys = ("input_size", "crop_pct", "crop_mode", "interpolation")
    return Source(
        name,
        module,
        **_scaled(cfg["mean"], cfg["std"]),
        resize={key: cfg[key] for key in keys if key in cfg},
        size=tuple(cfg["input_size"][1:]),
    )


def _scaled(mean: tuple[float, ...], std: tuple[float, ...]) -> dict:
    """Mean and standard deviation of values from 0 to 1, on the scale 0 to 255."""
    return dict(mean=[255 * value for value in mean], std=[255 * value for value in std])


def _preprocessing(trained: Trained) -> dict:
    """The fields of `Source` that say what images must be."""
    transform = ((trained.cfg.get("test_dataloader") or {}).get("dataset") or {}).get("transform")
    if isinstance(transform, dict):
        keys = ("input_size", "crop_pct", "crop_mode", "interpolation")
        resize = {key: transform[key] for key in keys if key in transform}
        return dict(
            **_scaled(transform.get("mean", IMAGENET_DEFAULT_MEAN), transform.get("std", IMAGENET_DEFAULT_STD)),
            resize=resize,
        )
    given = trained.cfg.model.get("data_preprocessor") or {}
    found = dict(mean=list(given.get("mean") or [0.0] * 3), std=list(given.get("std") or [1.0] * 3))
    found["channels"] = "RGB" if given.get("bgr_to_rgb") else "BGR"  # files are decoded as BGR
    found["divisor"] = given.get("pad_size_divisor") or 1
    steps = [node for _, node in named_dicts(trained.cfg.get("test_dataloader")) if node.get("type") == "Resize"]
    found["resize"] = {key: value for key, value in steps[0].items() if key != "type"} if steps else {}
    return found


def _usual_size(module: nn.Module, resize: dict) -> tuple[int, int]:
    """(height, width) of the position table, or as a classifier's images are cropped."""
    trunk = find_trunk(module)[1]
    if trunk is not None:
        return to_2tuple(trunk.img_size)
    size = resize.get("input_size", LIKELY_SIZE)
    return to_2tuple(size if isinstance(size, int) else tuple(size)[-2:])  # timm also takes (channels, height, width)


def _test_images(trained: Trained) -> Path | None:
    for dataset in dicts((trained.cfg.get("test_dataloader") or {}).get("dataset")):
        if dataset.get("data_root"):
            prefix = dataset.get("data_prefix") or {}
            inside = prefix.get("img") or prefix.get("img_path") or dataset.get("split") or ""
            folder = Path(dataset["data_root"], inside)
            return folder if folder.is_dir() else None
    return None
