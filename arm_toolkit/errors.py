"""Errors that a user can act on: shown as one line, without a traceback.

Imports neither torch nor mmengine, so that a tool can print its help and refuse wrong arguments at once.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from arm_images.errors import DataError

from .interrupts import remembered_interrupts, was_pressed
from .parent import ENDS_WITH_PARENT, LAUNCHER, end_with_parent

TRACEBACK = "ARM_TRACEBACK"
GRACE = 3  # seconds
INTERRUPTED = 128 + signal.SIGINT  # the exit status that shells expect


class ConfigError(ValueError):
    """A configuration or command line that cannot be run; the message names the key, its value and the remedy."""


class NotFinite(ArithmeticError):
    """Training diverged; the message names the iteration, the saved batch and the remedy."""

    met_alone = True  # the other processes have other batches


def user_errors() -> tuple[type[Exception], ...]:
    """The errors that are shown as one line; OSError covers unreadable files and a full disk.

    Write `except user_errors():`. Python evaluates the call only when something was raised.
    """
    # not imported here: their packages load torch
    errors, operators = (sys.modules.get(name) for name in ("arm_backbone.checkpoint.errors", "mmcv._ext"))
    checkpoint_error = (errors.CheckpointError,) if hasattr(errors, "CheckpointError") else ()
    operator_error = (operators.MissingOperator,) if hasattr(operators, "MissingOperator") else ()
    return (ConfigError, DataError, NotFinite, OSError, *checkpoint_error, *operator_error)


def one_line(error: BaseException) -> str:
    """The error's message in one line, also if a data worker re-raised it with its traceback."""
    if _lacks_operators(error):
        return "mmcv's operators cannot be imported (No module named 'mmcv._ext'); run: python -m arm_toolkit.mmcv_ops"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):  # from a worker: the last line is "Class: message"
        return lines[-1].split(": ", 1)[-1]
    return lines[0]


def run_tool(main: Callable[[], None], interrupted: str = "interrupted", prints_log: bool = False) -> None:
    """Run a tool's `main`; on a user's error print one line to stderr and exit with status 2.

    Ctrl-C prints one line, too, and exits with status 130. A process that a launcher started ends with it.

    With ARM_TRACEBACK=1 the traceback is shown instead. Of several processes only the first prints, unless the error
    has a true attribute `met_alone`: it occurred in this process only, e.g. at an unreadable image.

    Args:
        interrupted: the line that Ctrl-C prints.
        prints_log: what the tool prints is a log. Otherwise it is the result, and an error if it cannot be written.
    """
    end_with_parent()
    logging.raiseExceptions = wants_traceback()  # a log that cannot be written: no traceback
    with remembered_interrupts():
        try:
            main()
        except BaseException as error:
            if _by_ctrl_c(error) or was_pressed():
                _end_interrupted(interrupted)
            if isinstance(error, OSError) and error.filename is None:
                _check_output()
            if isinstance(error, BrokenPipeError):  # of an unbuffered stdout, for which nothing is left to flush
                sys.exit(128 + signal.SIGPIPE)
            if not isinstance(error, user_errors()) and not _lacks_operators(error):
                raise
            if wants_traceback():
                raise
            if not _is_first() and not getattr(error, "met_alone", False):
                if LAUNCHER not in os.environ:
                    sys.exit(2)
                time.sleep(GRACE)  # if the first process has the same error, the launcher ends this one meanwhile
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)
    _check_output(prints_log)
    distributed = _process_group()
    if distributed is None:
        return
    distributed.barrier()
    if distributed.get_backend() == "gloo":
        # During the interpreter's shutdown gloo's threads sometimes abort a finished process ("terminate called without
        # an active exception"): exit without that shutdown.
        logging.shutdown()
        _check_output(prints_log)
        sys.stderr.flush()
        os._exit(0)
    distributed.destroy_process_group()


def wants_traceback() -> bool:
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def _check_output(is_log: bool = False) -> None:
    """End the tool if what it printed cannot be written: quietly if its reader has gone, as `head` does."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        if is_log:
            return
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(2)


def _is_first() -> bool:
    distributed = _process_group()
    if distributed is None:
        return LAUNCHER not in os.environ or os.environ.get("RANK", "0") == "0"
    return distributed.get_rank() == 0


def _by_ctrl_c(error: BaseException) -> bool:
    """Whether Ctrl-C caused an error, even if a library turned it into one of its own."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error))


def _lacks_operators(error: BaseException) -> bool:
    """Whether mmcv's operators are missing, even if a library turned that into an error of its own."""
    return any(isinstance(cause, ModuleNotFoundError) and cause.name == "mmcv._ext" for cause in _causes(error))


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error, and those that it was raised from or while handling, the last one first."""
    causes: list[BaseException] = []
    while error is not None and not any(error is cause for cause in causes):
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _end_interrupted(line: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the end
    if os.environ.get("RANK", "0") == "0" and ENDS_WITH_PARENT not in os.environ:  # the parent prints its own
        print(f"\n{line}", file=sys.stderr, flush=True)
    if _process_group() is not None:  # its threads would wait for the other processes
        for worker in multiprocessing.active_children():
            worker.kill()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


def _process_group():
    """The module `torch.distributed` if this process belongs to a group, else None. Does not import it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_initialized() else None
