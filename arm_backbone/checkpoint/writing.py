"""Writes a file or folder completely or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_REMEDIES = {
    errno.ENOSPC: "free space there or give another path",
    errno.EDQUOT: "free space in your quota or give another path",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or give a path on another file system",
    errno.ENOENT: "make its folder first",
}


class WriteError(OSError):
    """A file that cannot be written; the message names the file, the reason and the remedy.

    Attributes:
        reason: why, in a few words.
    """

    def __init__(self, path: str | os.PathLike, reason: str, number: int | None = None) -> None:
        remedy = _REMEDIES.get(number, "check the folder and its permissions, or give another path")
        super().__init__(f"{path} cannot be written ({reason}); {remedy}; an earlier file of that name is unchanged")
        self.reason = reason


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or a new folder next to its final place, then rename it: readers never see an incomplete one.

    What was written reaches the disk before the name does, so that a power loss leaves no empty file either.

    Yields:
        the path to write to: `path` with ".part" appended. It does not exist at first; if the block raises, what it
        wrote there is removed.

    Raises:
        WriteError: if writing fails, for example because the disk is full; an earlier file is kept.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        _remove(partial)  # left by a process that was killed
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush_folder(path.parent)
    except Exception as error:
        failure = _failure(error, path, partial)
        if failure is None:
            raise
        raise WriteError(path, *failure) from error
    finally:
        _remove(partial)


def _failure(error: Exception, path: Path, partial: Path) -> tuple[str, int | None] | None:
    """Reason and errno if an error comes from writing `partial`; None if the block raised it for another reason."""
    if isinstance(error, WriteError):
        return None
    if isinstance(error, OSError):
        ours = error.filename is None or str(error.filename).startswith((str(path), str(partial)))
        return (error.strerror, error.errno) if error.errno and ours else None
    # of torch.save and safetensors' save_file
    if isinstance(error, SafetensorError) or (isinstance(error, RuntimeError) and "inline_container" in str(error)):
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else _probe(partial)
        return (os.strerror(number), number) if number else (str(error).splitlines()[0], None)
    return None


def _probe(partial: Path) -> int | None:
    """The errno with which another MiB cannot be written, because torch.save does not say it."""
    try:
        with open(partial, "ab", buffering=0) as file:
            block = memoryview(bytes(2**20))
            while block:
                block = block[file.write(block) :]
    except OSError as error:
        return error.errno
    return None


def _flush(path: Path) -> None:
    if path.is_dir():
        os.sync()  # a folder can hold a million images: one call instead of one for each
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot; the file itself is on the disk
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
