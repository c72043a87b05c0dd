"""Keeps lines that OpenMMLab prints or logs, and that ask nothing of a user, from the console."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

LINES = ("Could not import OneDL",)  # optional data sets of the company that maintains OpenMMLab
WARNINGS = (
    "faster_coco_eval is not installed",  # an optional evaluator that no configuration names
    "Default ``avg_non_ignore`` is False",  # mmseg's loss says at each start how it averages
    "'pin_memory' argument is set as true but no accelerator is found",  # the log says that no GPU is found
    "The draw is False",  # mmseg's hook that draws, where nothing is to be drawn
)
LOGGED = (
    '"FileClient" will be deprecated',  # mmengine says so of its own hooks
    '"HardDiskBackend" is the alias',
    "The prefix is not set in metric class",  # mmseg's and our metrics are known by their names
)


def is_of_use(record: logging.LogRecord) -> bool:
    """Filter of a run's logger."""
    return not record.getMessage().startswith(LOGGED)


class _Filter:
    """Passes whole lines on, but not those that begin with one of `LINES`."""

    def __init__(self, stream) -> None:
        self._stream, self._line = stream, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        self._pass_on("".join(f"{line}\n" for line in lines if not line.startswith(LINES)))
        return len(text)

    def finish(self) -> None:
        self._pass_on(self._line)
        self._line = ""

    def _pass_on(self, text: str) -> None:
        with suppress(OSError):  # a console that cannot be written stops no import; `run_tool` deals with it at the end
            self._stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Inside the block, and of warnings from then on, these lines are not shown. For imports only: a logger that is
    made inside would keep the filter."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    stream = _Filter(sys.stdout)
    try:
        with redirect_stdout(stream):
            yield
    finally:
        stream.finish()
