"""Ends a process with the one that started it, so that a restart does not meet workers of the run before."""

import ctypes
import os
import signal

ENDS_WITH_PARENT = "ARM_ENDS_WITH_PARENT"  # set for processes that our own programs start
_LAUNCHER = "TORCHELASTIC_RUN_ID"  # set by torchrun
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the system kill this process when its launcher ends, even by SIGKILL. Does nothing for others, or off Linux.

    A killed run loses nothing: its files are written whole.
    """
    if _LAUNCHER not in os.environ and ENDS_WITH_PARENT not in os.environ:
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        pass
