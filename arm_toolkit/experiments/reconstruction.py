"""Runs a pretrained model on images, for the figures of the report and the README.

Legend: R images, H x W pixels each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import MODELS

from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact
from arm_pretrain.data import ImageCrops
from arm_pretrain.targets import patch_statistics, patchify, unpatchify

from ..analysis.reconstruction import load_images, to_pixels
from ..engine.config import config_from_text
from ..engine.config_text import buildable


@dataclass(frozen=True)
class Reconstruction:
    """What a pretrained model predicts for some images.

    Attributes:
        images: (R, H, W, 3) uint8.
        means: the images with each predicted patch replaced by the true patch's mean, (R, H, W, 3) uint8.
        predictions: (R, H, W, 3) uint8.
        given: side in pixels of the upper left cluster, which is not predicted.
        loss: mean loss of all images in the folder, including those not shown.
        count: number of images in the folder.
    """

    images: np.ndarray
    means: np.ndarray
    predictions: np.ndarray
    given: int
    loss: float
    count: int


@torch.no_grad()
def reconstruct(config: Path, checkpoint: Path, folder: Path, rows: int) -> Reconstruction:
    """Run a pretrained model on a folder of images (resized centre crops); keep the predictions of the first `rows`.

    Args:
        config: configuration of the pretraining, from its work directory; it is parsed, not executed.

    Raises:
        CheckpointError: if the checkpoint is broken or does not fit the configuration.
        ConfigError: if the configuration holds more than values, or a type that is not registered.
    """
    cfg = config_from_text(config.read_text(encoding="utf-8"), str(config))
    model = MODELS.build(buildable(cfg.model.to_dict(), "model", str(config))).eval()
    load_exact(model, model_state(read_checkpoint(checkpoint), where=checkpoint), str(checkpoint))
    crops = ImageCrops(str(folder), size=cfg.train_dataloader.dataset.size, augment=False)
    losses, shown = [], None
    for start in range(0, len(crops), rows):
        images = load_images(model, crops, range(start, min(start + rows, len(crops))))
        losses += [model(images, mode="loss")["loss"].item()] * len(images)
        if shown is None:
            shown = [images, _patch_means(model, images), model(images, mode="predict")]
    side = round(model.patches.shape[1] ** 0.5) * model.encoder.patch_size
    return Reconstruction(*(to_pixels(model, x) for x in shown), side, float(np.mean(losses)), len(crops))


def _patch_means(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The best constant prediction: in all clusters but the first, each patch is replaced by its mean."""
    patches = patchify(images, model.encoder.patch_size)
    where = model.patches[1:].flatten()
    patches[:, where] = patch_statistics(patches[:, where])[0].expand_as(patches[:, where])
    return unpatchify(patches, model.encoder.patch_size, model.encoder.grid_size)
