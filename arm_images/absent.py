"""Says which of many listed images do not exist, and whether one of a similar name does."""

import os
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote


def absent_files(paths: Iterable[str]) -> list[str]:
    """The paths at which no regular file is. Lists each folder once, which is faster than asking for every file."""
    folders: dict[str, set[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _files(folder)
        if name not in folders[folder]:
            absent.append(path)
    return absent


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except (OSError, ValueError):  # not there, or not a path
        return set()


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def similar_file(path: str) -> str | None:
    """An existing file whose path differs from this one as other programs and systems write it; None if there is none.

    Tried are slashes for backslashes, characters for percent codes, the other forms of Unicode, capital or small
    letters, and another end of the name.
    """
    tried = [path.replace("\\", "/"), unquote(path), *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]
    for other in tried:
        if other != path and os.path.isfile(other):
            return other
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    names = sorted(_files(folder))
    same = [other for other in names if other.lower() == name.lower()]
    same += [other for other in names if os.path.splitext(other)[0] == stem]
    return os.path.join(folder, same[0]) if same else None
