"""Reads image files upright in 8-bit RGB, and label maps; a file that cannot be read stops the run or is skipped."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import DataError
from .find import ImageFile
from .pillow import Image, ImageOps
from .shared import SharedFlags

logger = logging.getLogger("arm_images")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB, whatever its mode. 16-bit greyscale is scaled; PIL alone would clip it at 255.

    Raises:
        DataError: for floating-point values, or integers of more than 16 bits: their range is not known.
    """
    if image.mode == "F":
        raise DataError("floating-point values, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise DataError(f"values {grey.min()} to {grey.max()}, more than 16 bits; save it with 8 or 16 bits")
        grey = grey.astype(np.float32) * (255 / 65535)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def require_regular(file: object) -> None:
    """Refuse a path to a folder, a pipe or a device: reading a pipe would wait for ever.

    Raises:
        DataError: without the file's name.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise DataError("it is not a regular file")


def read_rgb(file: Path | BinaryIO) -> Image.Image:
    """Decode an image: 8-bit RGB, upright (its EXIF orientation is applied). Raises whatever the decoder raises."""
    require_regular(file)
    with Image.open(file) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def read_labels(file: Path | BinaryIO) -> np.ndarray:
    """Decode a label map: (H, W) uint8, upright. Of a palette image these are its indices.

    Raises:
        DataError: if it does not hold one channel of integers 0 to 255, or is a JPEG, which changes labels. The message
            does not name the file.
    """
    require_regular(file)
    with Image.open(file) as image:
        if image.format in ("JPEG", "MPO"):
            raise DataError("a JPEG, which changes labels at the edges of regions; save it as PNG")
        mode = image.mode
        image.load()
        labels = np.asarray(ImageOps.exif_transpose(image))
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        raise DataError(f"not one 8-bit channel: {mode}; save the class numbers as 8-bit greyscale")
    if labels.dtype != np.uint8 and labels.size and (labels.min() < 0 or labels.max() > 255):
        worst = int(labels.max() if labels.max() > 255 else labels.min())
        raise DataError(f"the label {worst} in {labels.dtype.itemsize * 8} bits; labels are 0 to 255")
    return labels.astype(np.uint8)


def reason(error: Exception) -> str:
    """The first line of an error, or its type if it has no text."""
    return str(error).split("\n")[0] or type(error).__name__


class ImageFiles(list):
    """A list of image files with a policy for files that cannot be read.

    Data loader workers share the record of skipped files, so that the limit applies to all workers together.

    Args:
        files: from `find_images`.
        on_error: "raise" to stop at a file that cannot be read, "skip" to log it and read the next one instead.
        max_skipped: with "skip", how many different files each training process may skip before the run stops.

    Raises:
        ValueError: for an unknown `on_error`.
    """

    def __init__(self, files: Iterable[ImageFile], on_error: str = "raise", max_skipped: int = 100) -> None:
        super().__init__(files)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is unknown; give 'raise' or 'skip'")
        self.on_error, self.max_skipped = on_error, max_skipped
        self._skipped = SharedFlags(len(self))

    @property
    def skipped(self) -> np.ndarray:
        """(n,) bool: the files that were skipped so far."""
        return self._skipped.values

    def load_rgb(self, index: int) -> tuple[Image.Image, int]:
        """Decode a file upright, as RGB.

        Returns:
            the image, and the index of the file it was read from (a later one if files were skipped).

        Raises:
            DataError: if the file cannot be read; with "skip", if more than `max_skipped` files or all cannot be read.
        """
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            file = self[position]
            try:
                return read_rgb(file if isinstance(file, Path) else file.open()), position
            except Exception as error:  # noqa: BLE001 a decoder can raise anything
                if self.on_error == "raise":
                    raise DataError(
                        f"cannot read {file} ({reason(error)}); remove it, or set on_error='skip' in the dataset to "
                        "skip such files"
                    ) from None
                self._skip(position, error)
        raise DataError(f"cannot read any of the {len(self)} images, first {self[0]}; check the data")

    def _skip(self, position: int, error: Exception) -> None:
        file = self[position]
        if not self.skipped[position]:
            # not "%s": mmengine drops repeated templates as duplicates
            logger.warning(f"skipped {file}: {reason(error)}")
            self.skipped[position] = True
        count = int(self.skipped.sum())
        if count > self.max_skipped:
            raise DataError(
                f"{count} of {len(self)} images cannot be read, the last {file}; repair the data, or raise "
                f"max_skipped={self.max_skipped} in the dataset"
            )
