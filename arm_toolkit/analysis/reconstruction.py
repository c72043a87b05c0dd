"""Draws what a pretraining model predicts: a row per image, with the input, what the model sees of it if that is less,
the predictions and the error.

The model must implement `arm_pretrain.protocol.Reconstructs`.

Legend: B images, H x W pixels.
"""

import copy
import io
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact, require_match
from arm_pretrain import ImageCrops
from arm_pretrain.protocol import Reconstructs

from ..engine.config import config_from_text
from ..engine.config_text import buildable
from ..errors import ConfigError, one_line, user_errors

SIDE = 1.6  # inches of an image


def load_pretrainer(path: Path, trust: bool = False) -> tuple[BaseModel, Config]:
    """The model of a pretraining checkpoint, in evaluation mode, and the configuration stored with it.

    Args:
        trust: unpickle any object of the file and execute its configuration.

    Raises:
        CheckpointError: if the file is not a pretraining checkpoint, or its model does not implement `Reconstructs`.
        ConfigError: if its configuration is more than data, or names what is not registered.
    """
    checkpoint = read_checkpoint(path, trust)
    meta = checkpoint.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    cfg = config_from_text(text, str(path), trust) if isinstance(text, str) else Config()
    kind = cfg.model.get("type") if isinstance(cfg.get("model"), dict) else None
    if not isinstance(kind, str) or kind not in MODELS.module_dict:
        raise CheckpointError(f"{path} is not a checkpoint of a pretraining run; give an epoch_N.pth of its work dir")
    parts = cfg.model.to_dict() if trust else buildable(cfg.model.to_dict(), "model", str(path))
    try:
        with torch.device("meta"):  # takes no memory, whatever the sizes
            draft = MODELS.build(copy.deepcopy(parts))
        if not isinstance(draft, Reconstructs):
            raise CheckpointError(
                f"{path}: {kind} cannot show reconstructions, because it predicts no images; give a checkpoint of "
                "ARMPretrainer or MAEPretrainer"
            )
        state = model_state(checkpoint, where=path)
        require_match(draft.state_dict(), state, str(path))
        if not isinstance(cfg.train_dataloader.dataset.size, int | list | tuple):
            raise TypeError("train_dataloader.dataset.size is not an image size")
        model = MODELS.build(parts).eval()
    except user_errors():
        raise
    except Exception as error:  # noqa: BLE001 a constructor can raise anything
        raise CheckpointError(f"{path}: the model of its configuration cannot be built: {one_line(error)}") from error
    load_exact(model, state, str(path))
    return model, cfg


def load_images(model: BaseModel, crops: ImageCrops, indices: Iterable[int]) -> Tensor:
    """Load images of a data set, normalized by the model's data preprocessor, (B, 3, H, W)."""
    return model.data_preprocessor(dict(inputs=[crops[i]["inputs"] for i in indices]), False)["inputs"]


def given_units(model: BaseModel, asked: int | None, usual: int) -> int | None:
    """How many true units free-running prediction starts from; None for a model that predicts all at once.

    Args:
        model: implements `Reconstructs`.
        asked: what the user gives, None if nothing; `usual` is then taken.

    Raises:
        ConfigError: for a number that the model cannot use.
    """
    if model.units_per_image is not None:
        return usual if asked is None else asked
    if asked is not None:
        raise ConfigError(
            f"given={asked}: {type(model).__name__} predicts all masked patches at once, so none is given; leave it out"
        )
    return None


def draw(model: BaseModel, images: Tensor, given: int | None) -> bytes:
    """A PNG with one row per image.

    Args:
        model: implements `Reconstructs`.
        images: normalized (B, 3, H, W).
        given: number of true units that free-running prediction starts from, see `given_units`.

    Raises:
        ValueError: if the model cannot reconstruct images, or `given` is out of range.
    """
    result = model.reconstruct(images, given)
    first = next(iter(result.columns))
    error = (result.columns[first] - images).abs().mean(1)  # (B, H, W), of normalized values
    columns = {title: to_pixels(model, x) for title, x in dict(input=images, **result.seen, **result.columns).items()}
    columns[f"error, {first}"] = error.cpu().numpy()
    height, width = images.shape[2:]
    figure = Figure(
        figsize=(SIDE * len(columns) * width / height, SIDE * len(images) + 0.6), dpi=110, layout="constrained"
    )
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, cells) in enumerate(columns.items()):
        axes[0, column].set_title(textwrap.fill(title, 20), fontsize=7)
        for row, cell in enumerate(cells):
            axes[row, column].imshow(cell, cmap="magma", vmin=0, vmax=float(error.max()))
            axes[row, column].set_axis_off()
    if result.note:
        figure.supxlabel(result.note, fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def to_pixels(model: BaseModel, images: Tensor) -> np.ndarray:
    """Undo the model's normalization: (B, 3, H, W) -> (B, H, W, 3) uint8."""
    pixels = images * model.data_preprocessor.std + model.data_preprocessor.mean
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
