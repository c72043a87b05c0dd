"""Decodes image files to 8-bit RGB; a file that cannot be read stops the run or is skipped."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .errors import DataError
from .find import ImageFile
from .pillow import Image, ImageOps
from .shared import SharedFlags

logger = logging.getLogger("arm_images")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB, whatever its mode. 16-bit greyscale is scaled; PIL alone would clip it at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32) * (255 / 65535)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


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

    def load_rgb(self, index: int, upright: bool = True) -> tuple[Image.Image, int]:
        """Decode a file as RGB.

        Args:
            upright: apply the EXIF orientation. Published ImageNet accuracies are measured without it.

        Returns:
            the image, and the index of the file it was read from (a later one if files were skipped).

        Raises:
            DataError: if the file cannot be read; with "skip", if more than `max_skipped` files or all cannot be read.
        """
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            file = self[position]
            try:
                with Image.open(file if isinstance(file, Path) else file.open()) as image:
                    return to_rgb(ImageOps.exif_transpose(image) if upright else image), position
            except (OSError, SyntaxError, ValueError) as error:
                if self.on_error == "raise":
                    raise DataError(
                        f"cannot read {file} ({error}); remove it, or set on_error='skip' in the dataset to skip such "
                        "files"
                    ) from None
                self._skip(position, error)
        raise DataError(f"cannot read any of the {len(self)} images, first {self[0]}; check the data")

    def _skip(self, position: int, error: Exception) -> None:
        file = self[position]
        if not self.skipped[position]:
            logger.warning(f"skipped {file}: {error}")  # not "%s": mmengine drops repeated templates as duplicates
            self.skipped[position] = True
        count = int(self.skipped.sum())
        if count > self.max_skipped:
            raise DataError(
                f"{count} of {len(self)} images cannot be read, the last {file}; repair the data, or raise "
                f"max_skipped={self.max_skipped} in the dataset"
            )
