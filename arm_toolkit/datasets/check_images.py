"""Checks images for pretraining, and opens images for the other checks."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import ExifTags

from arm_images.errors import DataError
from arm_images.find import EXTENSIONS, ImageFile, survey
from arm_images.opencv import read_bgr
from arm_images.pillow import Image
from arm_images.read import read_rgb, require_regular

from .check_report import Report, _reason

THREADS = 4


def check_images(
    path: str | Path,
    root: str | Path | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Report:
    """Check pictures for pretraining, with the code that pretraining finds and reads them with.

    Args:
        path: any source of `arm_images.find.find_images`: a folder, a list, a .tar archive, a Hugging Face data set.
        root: folder that the lines of a list are relative to; default the folder of the list.
        decode: read every picture; else only its header.
        progress: show a bar on stderr.

    Returns:
        Facts: images, unreadable, modes (count by PIL mode), short_side (min, max) and
        long_side (min, max) in pixels.
    """
    report = Report(str(path))
    try:
        found = survey(path, root)
    except DataError as error:
        report.error(str(error))
        return report
    files = found.files
    for reason, left_out in found.left_out.items():
        report.note(f"left out {len(left_out)} {reason}", left_out)
    if not files:
        report.error(f"no images; looked for {', '.join(sorted(EXTENSIONS))}")
        return report
    twice = [name for name, count in Counter(map(str, files)).items() if count > 1]
    report.note(f"{len(twice)} paths are listed more than once", twice)

    unreadable, turned, modes, sizes = [], [], Counter(), []
    for file, look in _look_at(files, read_rgb if decode else None, progress):
        if look.fault:
            unreadable.append(f"{file} ({look.fault})")
        else:
            modes[look.mode] += 1
            sizes.append(look.size)
            turned += [file] * look.turned
    report.error(f"{len(unreadable)} of {len(files)} images cannot be decoded", unreadable)
    report.facts.update(images=len(files), unreadable=len(unreadable), modes=dict(modes))
    if sizes:
        short, long = np.sort(np.array(sizes), axis=1).T
        report.facts["short_side"] = int(short.min()), int(short.max())
        report.facts["long_side"] = int(long.min()), int(long.max())
        report.note(
            f"{len(files)} images; short side {short.min()} to {short.max()} pixels "
            f"(median {np.median(short):.0f}), long side {long.min()} to {long.max()}"
        )
    grey, cmyk = sum(modes[mode] for mode in ("1", "L", "LA")), modes["CMYK"]
    if grey or cmyk:
        report.note(f"{grey} greyscale, {cmyk} CMYK: loading converts them to RGB")
    report.note(f"{len(turned)} images have an EXIF orientation; they are read upright", turned)
    return report


@dataclass
class _Look:
    """One picture file. Sizes are (width, height); `size` is upright, after EXIF turns."""

    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    fault: str = ""


def read_dense(path: Path) -> np.ndarray:
    """Decode an image as detection and segmentation do."""
    return read_bgr(path.read_bytes())


def _look_at(files: Sequence[ImageFile], read: Callable | None, progress: bool) -> Iterator[tuple[ImageFile, _Look]]:
    """Open the files on a few threads (decoding lets go of Python's lock); in their order.

    Args:
        read: decodes an opened file or path; None reads headers only.
    """

    def look(file: ImageFile) -> tuple[ImageFile, _Look]:
        try:
            require_regular(file)
            with Image.open(file if isinstance(file, Path) else file.open()) as picture:
                size, mode = picture.size, picture.mode
                orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            if read is not None:
                read(file if isinstance(file, Path) else file.open())
            upright = size[::-1] if orientation in (5, 6, 7, 8) else size
            return file, _Look(mode, upright, orientation in range(2, 9))
        except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
            return file, _Look(fault=_reason(error))

    with ThreadPool(THREADS) as pool:
        yield from _bar(pool.imap(look, files, chunksize=16), len(files), progress)


def _bar(items: Iterable, total: int, show: bool) -> Iterable:
    if not show:
        return items
    from mmengine.utils import track_iter_progress

    return track_iter_progress((items, total), file=sys.stderr)
