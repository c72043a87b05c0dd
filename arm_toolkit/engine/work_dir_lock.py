"""One run per work dir: two would overwrite each other's checkpoints."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from mmengine.logging import print_log

from arm_backbone.checkpoint.writing import make_folder, write_errors

from ..errors import ConfigError

NAME = "run.lock"
_RANKS = dict(pytorch="RANK", slurm="SLURM_PROCID", mpi="OMPI_COMM_WORLD_RANK")


@contextmanager
def one_run(work_dir: str | os.PathLike, launcher: str) -> Iterator[None]:
    """Hold the lock of a work dir. Of several processes only the first holds it.

    The lock belongs to the process, so that the system releases it however the process ends, and to no data worker that
    outlives it. On network file systems it holds between hosts.

    Raises:
        ConfigError: if another run holds it, naming its host, its process and since when.
        WriteError: if the work dir cannot be made, or nothing can be written in it.
    """
    if not is_first_process(launcher):
        yield
        return
    path = Path(work_dir, NAME)
    make_folder(path.parent)
    with write_errors(path, path):
        file = _lock(path, create=True)
    if file is None:
        print_log(f"{path}: this file system has no locks; start no second run in this work dir", logger="current")
        yield
        return
    with file:
        text = f"host {socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.write(file.fileno(), text.encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def refuse_second_run(work_dir: str | os.PathLike) -> None:
    """Raise a ConfigError if a run holds the lock of a work dir; makes nothing."""
    path = Path(work_dir, NAME)
    if path.is_file():
        with write_errors(path, path):
            file = _lock(path, create=False)
        if file is not None:
            file.close()


def is_first_process(launcher: str) -> bool:
    """Whether this is the first process of a run, before the process group exists."""
    return launcher == "none" or os.environ.get(_RANKS.get(launcher, ""), "0") == "0"


def _lock(path: Path, create: bool) -> TextIO | None:
    """The locked file, emptied if `create`; None if the file system has no locks."""
    while True:
        file = open(path, "a+" if create else "r+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            first = file.read(200).strip() or "its lock says no more"
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None
            raise ConfigError(
                f"work dir {path.parent} belongs to a run that has not ended ({first}); wait for it, or give another "
                f"--work-dir; if its host has crashed and kept the lock, remove {path}"
            ) from None
        try:
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
        except FileNotFoundError:
            pass
        file.close()  # the run that held it has ended and removed it in between
        if not create:
            return None
    if create:
        file.truncate(0)
    return file
