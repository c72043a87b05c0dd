"""Draws what a pretraining model predicts: a row per image, with the input, the predictions and the error.

The model must implement `arm_pretrain.protocol.Reconstructs`.

Legend: B images, H x W pixels.
"""

import io
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
from arm_backbone.checkpoint.load import load_exact
from arm_pretrain import ImageCrops
from arm_pretrain.protocol import Reconstructs

from ..engine.config import config_from_text

SIDE = 1.6  # inches of an image


def load_pretrainer(path: Path) -> tuple[BaseModel, Config]:
    """The model of a pretraining checkpoint, in evaluation mode, and the configuration stored with it.

    Raises:
        CheckpointError: if the file is not a pretraining checkpoint, or its model does not implement `Reconstructs`.
    """
    checkpoint = read_checkpoint(path)
    meta = checkpoint.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    cfg = config_from_text(text) if isinstance(text, str) else Config()
    kind = (cfg.get("model") or {}).get("type")
    if not isinstance(kind, str) or MODELS.get(kind) is None:
        raise CheckpointError(f"{path} is not a checkpoint of a pretraining run; give an epoch_N.pth of its work dir")
    model = MODELS.build(cfg.model).eval()
    if not isinstance(model, Reconstructs):
        raise CheckpointError(f"{path}: {kind} cannot show reconstructions; give a checkpoint of a pretraining model")
    load_exact(model, model_state(checkpoint, where=path), str(path))
    return model, cfg


def load_images(model: BaseModel, crops: ImageCrops, indices: Iterable[int]) -> Tensor:
    """Load images of a data set, normalized by the model's data preprocessor, (B, 3, H, W)."""
    return model.data_preprocessor(dict(inputs=[crops[i]["inputs"] for i in indices]), False)["inputs"]


def draw(model: BaseModel, images: Tensor, given: int) -> bytes:
    """A PNG with one row per image.

    Args:
        model: implements `Reconstructs`.
        images: normalized (B, 3, H, W).
        given: number of true units that free-running prediction starts from.

    Raises:
        ValueError: if the model cannot reconstruct images, or `given` is out of range.
    """
    result = model.reconstruct(images, given)
    first = next(iter(result.columns))
    error = (result.columns[first] - images).abs().mean(1)  # (B, H, W), of normalized values
    columns = {title: to_pixels(model, x) for title, x in dict(input=images, **result.columns).items()}
    columns[f"error, {first}"] = error.cpu().numpy()
    height, width = images.shape[2:]
    figure = Figure(
        figsize=(SIDE * len(columns) * width / height, SIDE * len(images) + 0.6), dpi=110, layout="constrained"
    )
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, cells) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=7)
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
