"""Errors of the person who runs a tool: shown as one line, without a traceback."""

import logging
import os
import sys
from collections.abc import Callable

import torch.distributed

from arm_backbone.checkpoint.files import CheckpointError
from arm_images.errors import DataError

TRACEBACK = "ARM_TRACEBACK"


class ConfigError(ValueError):
    """A configuration or command line that cannot be run; the message names the key, its value and the remedy."""


class NonFiniteLoss(ArithmeticError):
    """A training that diverged; the message names the iteration, the batch and the remedy."""

    met_alone = True  # another process has another batch


USER_ERRORS = (
    ConfigError,
    DataError,
    CheckpointError,
    NonFiniteLoss,
    OSError,
)  # OSError: unreadable files, a full disk


def one_line(error: BaseException) -> str:
    """The message of an error, also of one that a data-loader worker passed on with its traceback."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):  # from a worker: the last line is "Class: message"
        return lines[-1].split(": ", 1)[-1]
    return lines[0]


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a user's error is one line on stderr and exit status 2 (ARM_TRACEBACK=1 shows where it came from).

    Of several processes the first one prints it, or the one that alone met it (`met_alone`, e.g. an unreadable image).
    """
    try:
        main()
    except USER_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if rank == 0 or getattr(error, "met_alone", False):
            print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        if torch.distributed.get_backend() == "gloo":
            # the interpreter's own end takes gloo's threads down in an order that now and then aborts a finished
            # process ("terminate called without an active exception"): end without it
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        torch.distributed.destroy_process_group()
