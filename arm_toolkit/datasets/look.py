"""Opens image files for the checks of data, with the code that training reads them with."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from arm_images.find import ImageFile
from arm_images.header import read_header
from arm_images.opencv import read_bgr
from arm_images.read import require_regular

from .check_report import Report, reason

THREADS = 4


@dataclass
class Look:
    """What an image file is.

    Attributes:
        size: (width, height) of the upright image.
        turned: whether its EXIF orientation turns or mirrors it.
        decoded: whether its pixels were read.
        fault: why it cannot be read; "" if it can.
    """

    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    decoded: bool = True
    fault: str = ""


def read_dense(path: Path) -> np.ndarray:
    """Decode an image as detection and segmentation do."""
    require_regular(path)
    return read_bgr(path.read_bytes())


def look_at(
    files: Sequence[ImageFile], read: Callable, decode: bool, progress: bool
) -> Iterator[tuple[ImageFile, Look]]:
    """Open files on a few threads (decoding lets go of Python's lock); in their order.

    Args:
        read: decodes a path or an opened file as training does.
        decode: decode every file; else only those whose header does not show that they can be read.
        progress: show a bar on stderr.
    """

    def look(file: ImageFile) -> tuple[ImageFile, Look]:
        try:
            header = read_header(file if isinstance(file, Path) else file.open())
            decoded = decode or not header.plain
            if decoded:
                read(file if isinstance(file, Path) else file.open())
            return file, Look(header.mode, header.size, header.turned, decoded)
        except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
            return file, Look(fault=reason(error))

    with ThreadPool(THREADS) as pool:
        yield from _bar(pool.imap(look, files, chunksize=16), len(files), progress)


def note_turned(report: Report, names: Sequence, consequence: str = "") -> None:
    """Note the images with an EXIF orientation."""
    report.note(f"{len(names)} images have an EXIF orientation; they are read upright{consequence}", names)


def _bar(items: Iterable, total: int, show: bool) -> Iterable:
    if not show:
        return items
    from mmengine.utils import track_iter_progress

    return track_iter_progress((items, total), file=sys.stderr)
