"""Walks a folder of images: follows links to folders, and never enters a folder twice."""

import os
from collections.abc import Iterator
from pathlib import Path

Identity = tuple[int, int]  # of a folder: its device and inode


def identity(folder: Path) -> Identity:
    """What two paths to one folder have in common."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def walk(root: Path, entered: set[Identity] | None = None) -> Iterator[Path]:
    """Yield everything under a folder that is not a folder, in no particular order.

    Links are followed after the real folders, so that a folder that is found both ways has its real path. A link to a
    folder that was read already, as in a loop, is not followed. A link to itself is yielded like a broken one.

    Args:
        entered: folders that are not entered; those that are entered are added to it.

    Raises:
        OSError: for a folder that cannot be listed.
    """
    links, entered = [root], set() if entered is None else entered
    while links:
        folders = [links.pop(0)]
        while folders:
            folder = folders.pop()
            itself = identity(folder)
            if itself in entered:
                continue
            entered.add(itself)
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = folder / entry.name
                    if not _is_folder(entry):
                        yield path
                    else:
                        (links if entry.is_symlink() else folders).append(path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
