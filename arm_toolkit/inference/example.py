"""Draws predictions on an image for a model card."""

from pathlib import Path

import cv2
import numpy as np

from ..engine.logs import write_image
from ..errors import ConfigError
from .build import find
from .drawing import draw
from .predictor import Predictor
from .results import DetectionResult
from .run import SCORE_THR

LARGEST = 1280  # side in pixels


def write_example(folder: Path, image: Path, target: Path) -> None:
    """Predict with the model of a published folder, and write the drawing without anything else of the photograph.

    Raises:
        ConfigError: if the model is a backbone, which predicts nothing.
        DataError: if the image cannot be read.
        WriteError: if the drawing cannot be written.
    """
    trained = find(folder)
    if trained.cfg.model.get("num_classes", 1) == 0:
        raise ConfigError(f"--example {image}: a backbone predicts nothing; leave it out")
    predictor = Predictor(trained)
    pixels = predictor.read(image)
    scale = LARGEST / max(pixels.shape[:2])
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    result = predictor(np.ascontiguousarray(pixels))
    if isinstance(result, DetectionResult):
        result = result.above(SCORE_THR)
    write_image(target, draw(pixels, result, predictor.palette))
