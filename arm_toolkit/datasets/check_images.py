"""Checks images for pretraining, and opens images for the other checks."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import ExifTags

from arm_images.find import EXTENSIONS
from arm_images.pillow import Image

from .check_report import Report, _reason

THREADS = 4


def check_images(
    path: str | Path,
    root: str | Path | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Report:
    """Check pictures for pretraining.

    Args:
        path: a folder (searched with all its subfolders), or a text file with a path per line.
        root: folder that the lines of a list are relative to; default the folder of the list.
        decode: read every picture; else only its header.
        progress: show a bar on stderr.

    Returns:
        Facts: images, unreadable, modes (count by PIL mode), short_side (min, max) and
        long_side (min, max) in pixels.
    """
    path = Path(path)
    report = Report(str(path))
    root = path if path.is_dir() else Path(root or path.parent)
    names = _list_pictures(path, report)
    if not names:
        if report.ok:
            report.error(f"no images; looked for {', '.join(sorted(EXTENSIONS))}")
        return report

    missing, unreadable, modes, sizes = [], [], Counter(), []
    for name, look in _look_at(root, names, decode, progress):
        if look.missing:
            missing.append(name)
        elif look.fault:
            unreadable.append(f"{name} ({look.fault})")
        else:
            modes[look.mode] += 1
            sizes.append(look.size)
    report.error(
        f"{len(missing)} of {len(names)} files are not in {root} (what is a list relative to? "
        "root, or --root, says so)",
        missing,
    )
    report.error(f"{len(unreadable)} of {len(names)} images cannot be decoded", unreadable)
    report.facts.update(images=len(names), unreadable=len(unreadable), modes=dict(modes))
    if sizes:
        short, long = np.sort(np.array(sizes), axis=1).T
        report.facts["short_side"] = int(short.min()), int(short.max())
        report.facts["long_side"] = int(long.min()), int(long.max())
        report.note(
            f"{len(names)} images; short side {short.min()} to {short.max()} pixels "
            f"(median {np.median(short):.0f}), long side {long.min()} to {long.max()}"
        )
    grey, cmyk = sum(modes[mode] for mode in ("1", "L", "LA")), modes["CMYK"]
    if grey or cmyk:
        report.note(f"{grey} greyscale, {cmyk} CMYK: convert them to RGB when loading")
    return report


def _list_pictures(path: Path, report: Report) -> list[str]:
    """Names of the pictures, relative to the folder or as the list has them."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
        return sorted(str(file.relative_to(path)) for file in files)
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        report.error(f"cannot be read ({error.strerror}); give a folder or a list of images")
        return []
    except UnicodeDecodeError:
        report.error("is not text; give a folder of images, or a list with a path per line")
        return []
    names = [line for line in lines if line]
    twice = [name for name, count in Counter(names).items() if count > 1]
    report.note(f"{len(twice)} paths are listed more than once", twice)
    return names


@dataclass
class _Look:
    """One picture file. Sizes are (width, height); `size` is upright, after EXIF turns."""

    mode: str = ""
    size: tuple[int, int] = (0, 0)
    stored_size: tuple[int, int] = (0, 0)
    fault: str = ""
    missing: bool = False


def _look_at(root: Path, names: Sequence[str], decode: bool, progress: bool) -> Iterator[tuple[str, _Look]]:
    """Open the files on a few threads (decoding lets go of Python's lock); in their order."""

    def look(name: str) -> tuple[str, _Look]:
        return name, open_one(root / name)

    def open_one(path: Path) -> _Look:
        try:
            with Image.open(path) as picture:
                size, turned = picture.size, picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
                if decode:
                    picture.load()
                return _Look(picture.mode, size[::-1] if turned else size, size)
        except FileNotFoundError:
            return _Look(fault="missing", missing=True)
        except Exception as error:  # whatever a decoder makes of a damaged file
            return _Look(fault=_reason(error))

    with ThreadPool(THREADS) as pool:
        yield from _bar(pool.imap(look, names, chunksize=16), len(names), progress)


def _bar(items: Iterable, total: int, show: bool) -> Iterable:
    if not show:
        return items
    from mmengine.utils import track_iter_progress

    return track_iter_progress((items, total), file=sys.stderr)
