"""Reads an image with OpenCV, as OpenMMLab does, under the same rules as `arm_images.read`."""

import io

import cv2
import numpy as np

from .errors import DataError
from .header import ENDS, ORIENTATION
from .pillow import Image
from .read import read_rgb

TURNS = {  # from the stored to the upright image, by EXIF orientation
    2: np.fliplr,
    3: lambda image: image[::-1, ::-1],
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def read_bgr(data: bytes) -> np.ndarray:
    """Decode an image file's contents: (H, W, 3) uint8, BGR, upright.

    OpenCV decodes upright 8-bit files, and JPEG files of any orientation. Pillow decodes the others (16 bits, an
    orientation in another format), so that they are read as in pretraining. A file without its end goes through Pillow
    too, because OpenCV fills what is missing without a word.

    Raises:
        DataError: if OpenCV cannot decode it; otherwise whatever Pillow raises.
    """
    with Image.open(io.BytesIO(data)) as image:
        kind, mode, orientation = image.format, image.mode, image.getexif().get(ORIENTATION, 1)
    turned = orientation in TURNS
    if mode == "F" or mode.startswith("I") or turned and kind not in ("JPEG", "MPO"):
        return _pillow(data)
    if kind in ENDS and not data.endswith(ENDS[kind]):
        _pillow(data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DataError("OpenCV cannot decode it")
    return np.ascontiguousarray(TURNS[orientation](image)) if turned else image


def _pillow(data: bytes) -> np.ndarray:
    return np.asarray(read_rgb(io.BytesIO(data)))[..., ::-1].copy()
