"""What AR prediction sees, drawn: input, prediction from the true past, free-running prediction, and the error."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor

from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact
from arm_pretrain import ARMPretrainer, ImageCrops

from ..engine.config import config_from_text

SIDE = 1.6  # inches of a picture


def load_pretrainer(path: Path) -> tuple[ARMPretrainer, Config]:
    """The model of a training checkpoint, and the configuration that is kept in it.

    Raises:
        CheckpointError: if the file is no training checkpoint of pretraining.
    """
    checkpoint = read_checkpoint(path)
    text = (checkpoint.get("meta") or {}).get("cfg") if isinstance(checkpoint.get("meta"), dict) else None
    if not isinstance(text, str) or "ARMPretrainer" not in text:
        raise CheckpointError(f"{path} is no training checkpoint of AR pretraining (epoch_N.pth of its work dir)")
    cfg = config_from_text(text)
    model = MODELS.build(cfg.model).eval()
    load_exact(model, model_state(checkpoint), str(path))
    return model, cfg


def load_images(model: ARMPretrainer, crops: ImageCrops, indices: Iterable[int]) -> Tensor:
    """Images of a data set as the model takes them, normalised (B, 3, H, W)."""
    return model.data_preprocessor(dict(inputs=[crops[i]["inputs"] for i in indices]), False)["inputs"]


def draw(model: ARMPretrainer, images: Tensor, given: int) -> bytes:
    """A PNG with a row for each image.

    Args:
        images: normalised (B, 3, H, W).
        given: true clusters that free-running prediction starts from.
    """
    patches = model.draw_patches()
    past, free = model.reconstruct(images, patches), model.generate(images, given, patches)
    error = (past - images).abs().mean(1)  # (B, H, W), of normalised values
    columns = {
        "input": to_pixels(model, images),
        "predicted from the true past": to_pixels(model, past),
        f"free-running from {given} of {len(patches)}": to_pixels(model, free),
        "error of the second": error.cpu().numpy(),
    }
    height, width = images.shape[2:]
    figure = Figure(
        figsize=(SIDE * len(columns) * width / height, SIDE * len(images) + 0.6), dpi=110, layout="constrained"
    )
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=7)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, cmap="magma", vmin=0, vmax=float(error.max()))
            axes[row, column].set_axis_off()
    if model.target == "normalised_pixels":
        figure.supxlabel("each predicted patch is put back with the mean and deviation of the true one", fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def to_pixels(model: ARMPretrainer, images: Tensor) -> np.ndarray:
    """Normalised (B, 3, H, W) -> (B, H, W, 3) uint8."""
    pixels = images * model.data_preprocessor.std + model.data_preprocessor.mean
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
