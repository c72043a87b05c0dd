"""Reads files that hold no code: JSON and images."""

import json
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.pillow import Image
from arm_images.read import read_rgb, reason


def read_json(path: Path) -> dict | list:
    """The content of a JSON file, {} if it does not exist.

    Raises:
        DataError: if the file is incomplete or not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a complete JSON file ({error}); delete it and run again") from None


def read_image(path: Path) -> np.ndarray:
    """An image file upright, (H, W, 3) uint8.

    Raises:
        DataError: if it cannot be read; names it.
    """
    try:
        return np.asarray(read_rgb(path))
    except Exception as error:  # noqa: BLE001 a decoder can raise anything
        raise DataError(f"image {path} cannot be read ({reason(error)})") from None


def read_pixels(path: Path) -> np.ndarray:
    """An image file as (H, W, 3), or a label map as (H, W), uint8."""
    with Image.open(path) as image:
        return np.asarray(image)
