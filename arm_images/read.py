"""Reads image files as 8-bit RGB, and skips or reports those that cannot be read."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image, ImageOps

from .find import ImageFile


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode; 16-bit greyscale is scaled, where PIL would cut it off at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32) * (255 / 65535)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


class ImageFiles(list):
    """Image files, and what happens to one that cannot be read.

    Args:
        files: from `find_images`.
        on_error: "raise", or "skip" to warn and take the next one that can be read.
        max_skipped: different files that may be skipped, on each process, before the run stops after all.

    Raises:
        ValueError: for another `on_error`.
    """

    def __init__(self, files: Iterable[ImageFile], on_error: str = "raise", max_skipped: int = 100) -> None:
        super().__init__(files)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: give 'raise' or 'skip'")
        self.on_error, self.max_skipped = on_error, max_skipped
        self.skipped = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # workers write into the same

    def load_rgb(self, index: int, upright: bool = True) -> tuple[Image.Image, int]:
        """Open a file as RGB.

        Args:
            upright: turn the image as its EXIF data say (ImageNet's accuracies are measured without).

        Returns:
            the image, and the index of its file.

        Raises:
            OSError: naming the file that cannot be read; with "skip" if more than `max_skipped` cannot.
        """
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            file = self[position]
            try:
                with Image.open(file if isinstance(file, Path) else file.open()) as image:
                    return to_rgb(ImageOps.exif_transpose(image) if upright else image), position
            except (OSError, SyntaxError, ValueError) as error:
                if self.on_error == "raise":
                    raise OSError(
                        f"cannot read {file} ({error}); remove it, or set on_error='skip' in the dataset to leave it "
                        "out"
                    ) from None
                if not self.skipped[position]:
                    print_log(f"left out {file}: {error}", logger="current", level=logging.WARNING)
                    self.skipped[position] = True
            skipped = int(self.skipped.sum())
            if skipped > self.max_skipped:
                raise OSError(
                    f"{skipped} of {len(self)} images cannot be read, the last {file}; repair the data, or set "
                    f"max_skipped={self.max_skipped} in the dataset higher"
                )
        raise OSError(f"none of the {len(self)} images can be read, first {self[0]}")
