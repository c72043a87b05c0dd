"""Uses a trained model: `load` gives it; images go in, plain arrays, names and scores come out.

Importing this package loads neither torch nor OpenMMLab; calling `load` does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .predictor import Predictor


def load(
    model: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    device: str | None = None,
    *,
    tta: bool = False,
    window: int | None = None,
    dtype: str = "float32",
) -> Predictor:
    """Load a trained detector, segmentor or classifier.

    Example:
        predictor = load("work_dirs/nuts/epoch_12.pth")
        result = predictor("photo.jpg")  # result.boxes, result.scores, result.names, result.masks

    Args:
        model: a published folder, `hf://OWNER/NAME`, a checkpoint that one of our trainings wrote (it holds its
            configuration), or a configuration file (.py).
        checkpoint: the weights, if `model` is a configuration file.
        device: "cpu", "cuda", "cuda:1"; by default a GPU if there is one.
        tta: test-time augmentation: average over the sizes and flips of the configuration's `tta_pipeline`.
        window: of a segmentor: predict in windows of so many pixels that overlap by a third, whatever the configuration
            says.
        dtype: of the matrix products, "float32" or "bfloat16", which is faster on a GPU or a processor that multiplies
            it.

    Returns:
        an object that is called with an image or a list of images, see `predictor.Predictor`.

    Raises:
        ConfigError, CheckpointError: naming what is missing or does not fit, and the remedy. Nothing in the files is
            executed, except a configuration file.
    """
    from .build import find
    from .predictor import Predictor

    return Predictor(find(model, checkpoint), device, tta=tta, window=window, dtype=dtype)
