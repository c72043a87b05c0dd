"""Text files with one path per line."""

import codecs
from pathlib import Path

from .errors import DataError
from .pillow import Image

ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "compressed (gzip)", b"BZh": "compressed (bzip2)",
            b"\xfd7zXZ": "compressed (xz)", b"\x28\xb5\x2f\xfd": "compressed (zstd)", b"7z\xbc\xaf": "a 7z archive",
            b"Rar!": "a rar archive"}  # fmt: skip
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UNPACK = "unpack it and give the folder, or pack its images into an uncompressed .tar"


def read_list(file: Path) -> list[str]:
    """The lines of a list, without blank ones. The text is UTF-8, with or without a byte order mark.

    Raises:
        DataError: if the file cannot be read, is an image or an archive, or has another encoding.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); give a folder or a list of images") from None
    for start, what in ARCHIVES.items():
        if data.startswith(start):
            raise DataError(f"{file} is {what}, which is not read; {UNPACK}")
    if _is_image(file):
        raise DataError(f"{file} is one image; give its folder, or a text file with one path per line")
    if data.startswith(WIDE) or b"\0" in data[:4096]:
        text = "UTF-16" if data.startswith(WIDE) else "binary, or UTF-16"
        raise DataError(f"{file} is {text}, not a list of paths in UTF-8; convert it: iconv -f UTF-16 -t UTF-8")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not text in UTF-8 (line {line}); give a folder of images, or a list in UTF-8 "
            "(from Latin-1: iconv -f LATIN1 -t UTF-8)"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def _is_image(file: Path) -> bool:
    try:
        with Image.open(file):
            return True
    except Exception:  # noqa: BLE001 a decoder can raise anything
        return False
