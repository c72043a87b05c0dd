"""Turns what a user has in memory into an image: upright (H, W, 3) uint8, RGB."""

import numpy as np
import torch
from torch import Tensor

from arm_images.errors import DataError
from arm_images.pillow import Image, ImageOps
from arm_images.read import reason, to_rgb

FORMS = (
    "give a path, a PIL image, an array (H, W, 3) of uint8, or a tensor (3, H, W) of uint8 or of floating-point values "
    "from 0 to 1"
)


def as_rgb(image: object, where: str, bgr: bool = False) -> np.ndarray:
    """An image in memory as (H, W, 3) uint8, RGB.

    Args:
        image: one of

            * a PIL image of any mode; its EXIF orientation is applied,
            * an array (H, W, 3) uint8; also (H, W) or (H, W, 1) uint8 or uint16 (greyscale), or (H, W, 4) uint8, whose
              transparency is dropped,
            * a tensor (3, H, W) or (1, H, W), uint8, or floating-point values from 0 to 1.
        where: what messages call it.
        bgr: arrays have the channels of OpenCV, blue first.

    Raises:
        DataError: for anything else; names what was given.
    """
    try:
        if isinstance(image, Tensor):
            image, bgr = _from_tensor(image, where), False
        if isinstance(image, np.ndarray):
            image = _from_array(image, where, bgr)
        if isinstance(image, Image.Image):
            image = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 a decoder can raise anything
        raise DataError(f"{where} cannot be read ({reason(error)}); {FORMS}") from None
    if not isinstance(image, np.ndarray):
        raise DataError(f"{where} is a {type(image).__name__}; {FORMS}")
    if not image.size:
        raise DataError(f"{where} has no pixels: shape {image.shape}")
    return image


def _from_tensor(image: Tensor, where: str) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(f"{where} is a tensor of shape {tuple(image.shape)}; {FORMS}")
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = (float(value) for value in image.float().aminmax()) if image.numel() else (0, 0)
        if not (0 <= low and high <= 1):
            raise DataError(f"{where} is a tensor with values from {low:.4g} to {high:.4g}; {FORMS}")
        image = (image.float() * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()


def _from_array(image: np.ndarray, where: str, bgr: bool) -> np.ndarray | Image.Image:
    """The array itself if it is (H, W, 3) uint8, else a PIL image."""
    shape, kind = image.shape, image.dtype
    if image.ndim == 3 and shape[2] == 1:
        image = image[..., 0]
    colours = image.ndim == 3 and image.shape[2] in (3, 4) and kind == np.uint8
    if not (colours or (image.ndim == 2 and kind in (np.uint8, np.uint16))):
        raise DataError(f"{where} is an array of {kind} and shape {shape}; {FORMS}")
    if colours:
        image = image[..., [2, 1, 0]] if bgr else image[..., :3]
        return np.ascontiguousarray(image)
    return Image.fromarray(image)
