"""What an image file says of itself, without decoding all of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import DataError
from .pillow import Image, UnidentifiedImageError
from .read import require_regular

ORIENTATION = 0x0112  # EXIF
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
PLAIN_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK"}


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        mode: Pillow's mode.
        size: (width, height) in pixels of the upright image.
        turned: whether the EXIF orientation turns or mirrors the image.
        plain: whether the file is of a common kind and ends as it should. Others have to be decoded to know whether
            they can be read.
    """

    mode: str
    size: tuple[int, int]
    turned: bool
    plain: bool


def read_header(file: Path | BinaryIO) -> Header:
    """Read the header of an image file.

    Raises:
        DataError: if the file is empty or not an image; the message does not name it. A damaged file raises Pillow's
            own errors.
    """
    require_regular(file)
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return read_header(opened)
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(16)
    if not start:
        raise DataError("it is empty")
    file.seek(0)
    try:
        with Image.open(file) as image:
            kind, mode, size = image.format, image.mode, image.size
            orientation = image.getexif().get(ORIENTATION, 1)
            ends = _ends(file, kind, start, length)
    except UnidentifiedImageError:
        raise DataError(f"no image: it starts with {start!r}") from None
    upright = size[::-1] if orientation in (5, 6, 7, 8) else size
    return Header(mode, upright, orientation in range(2, 9), mode in PLAIN_MODES and ends)


def _ends(file: BinaryIO, kind: str, start: bytes, length: int) -> bool:
    """Whether a file ends as its format prescribes; False where that cannot be seen."""
    if kind in ENDS:
        file.seek(-min(length, len(ENDS[kind])), os.SEEK_END)
        return file.read() == ENDS[kind]
    if kind == "WEBP":
        return int.from_bytes(start[4:8], "little") + 8 <= length
    if kind == "BMP":
        return 0 < int.from_bytes(start[2:6], "little") <= length
    return False
