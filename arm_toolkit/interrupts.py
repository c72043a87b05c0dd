"""Hears Ctrl-C where the exception that it raises is ignored.

Python raises KeyboardInterrupt between any two instructions. Some places ignore every exception: the hooks of os.fork,
`__del__`, copyreg, a bare `except` in mmengine. A run would go on there, while its data workers have ended.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_pressed = False


@contextmanager
def remembered_interrupts() -> Iterator[None]:
    """Remember within the block whether Ctrl-C was pressed in it.

    Processes that are forked in it (data workers) end when it is pressed, and print nothing. A block that ends the
    process sets the signal to be ignored. Nothing is restored then, so that objects which the interrupt left half-made
    print no errors when they are deleted.
    """
    global _pressed
    handler, hooks = signal.getsignal(signal.SIGINT), (sys.unraisablehook, sys.excepthook)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return
    pid, interrupt = os.getpid(), functools.partial(_interrupt, os.getpid())
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = functools.partial(_show_ignored, hooks[0])
    sys.excepthook = functools.partial(_show_error, hooks[1], pid)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, handler)
            sys.unraisablehook, sys.excepthook = hooks
            _pressed = False


def _interrupt(pid: int, number: int, frame) -> None:
    global _pressed
    if os.getpid() != pid:
        os._exit(0)  # with another status PyTorch would report that a data worker failed
    _pressed = True
    raise KeyboardInterrupt


def _show_ignored(hook, ignored) -> None:
    if not _pressed and not issubclass(ignored.exc_type, KeyboardInterrupt):
        hook(ignored)


def _show_error(hook, pid: int, kind: type[BaseException], error: BaseException, trace) -> None:
    """Show an error, unless a data worker has it because the process `pid`, which reads from it, was interrupted."""
    if os.getpid() == pid or not issubclass(kind, ConnectionError | EOFError):
        hook(kind, error, trace)


def was_pressed() -> bool:
    """Whether Ctrl-C was pressed since a block of `remembered_interrupts` began."""
    return _pressed


def raise_ignored_interrupt() -> None:
    """Raise KeyboardInterrupt again if Ctrl-C was pressed. Call it where a run goes on that may have ignored it."""
    if _pressed:
        raise KeyboardInterrupt
