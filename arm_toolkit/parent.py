"""Ends a process with the one that started it, so that a restart does not meet workers of the run before."""

import ctypes
import os
import signal

ENDS_WITH_PARENT = "ARM_ENDS_WITH_PARENT"  # id of the parent, set by programs of ours for the processes they start
LAUNCHER = "TORCHELASTIC_RUN_ID"  # set by torchrun
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the system kill this process when its launcher ends, even by SIGKILL. Does nothing for others, or off Linux.

    A killed run loses nothing: its files are written whole.
    """
    parent = os.environ.get(ENDS_WITH_PARENT)
    if LAUNCHER not in os.environ and parent is None:
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return
    if (parent or "").isdigit() and parent != str(os.getppid()) and not os.path.exists(f"/proc/{parent}"):
        os.kill(os.getpid(), signal.SIGKILL)  # it had ended before the system was told
