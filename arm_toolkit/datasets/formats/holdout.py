"""Holds out images for validation where a data set has no validation split.

The rule: order the images by name, with 2 before 10. Names that differ only in their last number are one sequence, as
the frames of a video; all names that belong to no sequence of five or more form one together. The last fifth of each
sequence is held out, in one piece, so that frames have neighbours on the other side at that one cut only. Copies of an
image go where the image goes: files of equal bytes, and the variants that Roboflow exports (`NAME.rf.HASH.jpg`).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

SHARE = 5  # one image in this many is held out
RULE = "the last fifth of each sequence of names"


def natural(name: str) -> list:
    """A key that orders names with their numbers as numbers."""
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def hold_out(names: Iterable[str], copies: dict[str, str] | None = None) -> set[str]:
    """The names that the rule above holds out: the same ones whenever the names are the same.

    Args:
        names: paths of images, relative to the data set.
        copies: the first image of equal bytes, for those that are copies (`equal_files`).

    Returns:
        at least one name and not all of them, if at least two images differ.
    """
    units: dict[str, list[str]] = defaultdict(list)  # an image and its copies
    for name in sorted(names, key=natural):
        units[_source((copies or {}).get(name, name))].append(name)
    sequences: dict[str, list[str]] = defaultdict(list)
    for source in units:
        sequences[re.sub(r"\d+(?=\D*$)", "#", source)].append(source)
    alone = [source for of_one in sequences.values() if len(of_one) < SHARE for source in of_one]
    parts = [of_one for of_one in sequences.values() if len(of_one) >= SHARE]
    parts += [sorted(alone, key=natural)] if alone else []
    held = [source for of_one in parts for source in of_one[len(of_one) - round(len(of_one) / SHARE) :]]
    if not held and len(units) > 1:
        held = list(units)[-1:]
    return {name for source in held for name in units[source]}


def _source(name: str) -> str:
    """The image's name without its ending, and without what Roboflow adds to the name of a variant."""
    path = PurePosixPath(name)
    return str(path.with_name(re.sub(r"\.rf\.\w+$", "", path.stem)))


def equal_files(files: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Of named files those whose bytes an earlier one has, with the name of the earlier one.

    Only files of equal size and equal last 4 KiB are read whole. Files that cannot be read count as different.
    """
    alike: dict[tuple, list[tuple[str, Path]]] = defaultdict(list)
    sizes: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for name, file in files:
        try:
            sizes[file.stat().st_size].append((name, file))
        except OSError:
            continue
    for size, candidates in sizes.items():
        for name, file in candidates if len(candidates) > 1 else ():
            alike[size, _digest(file, max(0, size - 4096)) or name].append((name, file))
    copies: dict[str, str] = {}
    for candidates in alike.values():
        first: dict[bytes | str, str] = {}
        for name, file in candidates if len(candidates) > 1 else ():
            digest = _digest(file) or name
            if first.setdefault(digest, name) != name:
                copies[name] = first[digest]
    return copies


def _digest(file: Path, start: int = 0) -> bytes | None:
    """Of a file's bytes from a position on; None if it cannot be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            return hashlib.sha256(opened.read()).digest()
    except OSError:
        return None
