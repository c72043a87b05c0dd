"""Writes a file or folder completely or not at all."""

import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_REMEDIES = {
    errno.ENOSPC: "free space there or give another path",
    errno.EDQUOT: "free space in your quota or give another path",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or give a path on another file system",
}


class WriteError(OSError):
    """A file or folder that cannot be written; the message names it, the reason and the remedy.

    Attributes:
        reason: why, in a few words.
    """

    def __init__(
        self, path: str | os.PathLike, reason: str, number: int | None = None, is_folder: bool = False
    ) -> None:
        remedy = _REMEDIES.get(number, "check the folder and its permissions, or give another path")
        unchanged = "" if is_folder else "; an earlier file of that name is unchanged"
        super().__init__(f"{path} cannot be {'made' if is_folder else 'written'} ({reason}); {remedy}{unchanged}")
        self.reason = reason


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        WriteError: if that fails, for example because a file has its name.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocking = [part for part in (folder, *folder.parents) if os.path.lexists(part) and not part.is_dir()]
        reason = f"{blocking[0]} is not a folder" if blocking else error.strerror or str(error)
        raise WriteError(folder, reason, error.errno, is_folder=True) from error


def check_writable(path: str | os.PathLike) -> None:
    """Check that a file can be written later, before the work that its contents need; makes its folder.

    Raises:
        WriteError: if it cannot.
    """
    if Path(path).is_dir():
        raise WriteError(path, "it is a folder")
    partial = _partial(path)
    with write_errors(path, partial):
        partial.touch()
    _remove(partial)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or a new folder next to its final place, then rename it: readers never see an incomplete one.

    What was written reaches the disk before the name does, so that a power loss leaves no empty file either. The
    folder of `path` is made; of a symbolic link, the file that it names is written.

    Yields:
        the path to write to: `path` with ".part" appended (".part1" in process 1). It does not exist at first; if the
        block raises, what it wrote there is removed.

    Raises:
        WriteError: if writing fails, for example because the disk is full; an earlier file is kept.
    """
    partial = _partial(path)
    try:
        with write_errors(path, partial):
            _remove(partial)  # left by a process that was killed
            yield partial
            _flush(partial)
            os.replace(partial, partial.with_suffix(""))
            _flush_folder(partial.parent)
    finally:
        _remove(partial)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended.

    An interrupt within `torch.save` can be lost (Python's copyreg ignores errors), or abort the process (PyTorch's
    writer ends a file object that is closed already).
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # only the main thread is interrupted
        return
    pressed: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *arguments: pressed.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(*pressed[0])


def _partial(path: str | os.PathLike) -> Path:
    """The name under which a file is written at first; makes its folder.

    In each process of a distributed run it is another one: two of them may write one file, as the label map of an image
    that the sampler repeats to give every process as many.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise WriteError(path, "it is a device or a pipe")  # which a rename would replace
    make_folder(target.parent)
    rank = os.environ.get("RANK", "0")
    return target.with_name(f"{target.name}.part{'' if rank == '0' else rank}")


@contextmanager
def write_errors(path: str | os.PathLike, partial: Path) -> Iterator[None]:
    """Turn an error of writing `partial` into one that names `path`.

    Raises:
        WriteError: instead of the errors of Python, Pillow, PyTorch and safetensors.
    """
    try:
        yield
    except Exception as error:
        failure = _failure(error, path, partial)
        if failure is None:
            raise
        raise WriteError(path, *failure) from error


def _failure(error: Exception, path: str | os.PathLike, partial: Path) -> tuple[str, int | None] | None:
    """Reason and errno if an error comes from writing `partial`; None if the block raised it for another reason."""
    if isinstance(error, WriteError):
        return None
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        ours = error.filename is None or str(error.filename).startswith((str(path), str(partial)))
        return (error.strerror or text, error.errno) if ours else None
    pillow = isinstance(error, OSError) and "when writing image file" in text
    pytorch = isinstance(error, RuntimeError) and "inline_container" in text
    if pillow or pytorch or isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", text)
        number = int(found[1]) if found else _probe(partial)
        return (os.strerror(number), number) if number else (text.splitlines()[0], None)
    return None


def _probe(partial: Path) -> int | None:
    """The errno with which another MiB cannot be written, because Pillow and torch.save do not say it."""
    try:
        with open(partial / "probe" if partial.is_dir() else partial, "ab", buffering=0) as file:
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
