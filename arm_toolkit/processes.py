"""Starts a tool in several processes with torchrun, and ends as a tool does: with one line and an exit status.

tools/dist_run.sh calls it:
    python -m arm_toolkit.processes [arguments of torchrun] TOOL [arguments of TOOL]

torchrun would add a traceback and tables after the line of the process that stopped; ARM_TRACEBACK=1 shows them.
"""

import logging
import os
import signal
import sys

from .errors import one_line, wants_traceback
from .parent import ENDS_WITH_PARENT

OUT_OF_MEMORY = {signal.SIGKILL: " (the system does that when memory runs out)"}


def start(arguments: list[str]) -> int:
    """Run torchrun; return the exit status: of the process that failed first, or 128 and a signal's number."""
    os.environ[ENDS_WITH_PARENT] = str(os.getpid())
    loud = wants_traceback()
    try:
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        if not loud:
            _silence_torchrun()
        try:
            run.main([*_kept_signals(run.LaunchConfig), *arguments])
        except ChildFailedError as error:
            if loud:
                raise
            rank, failure = error.get_first_failure()
            return _failed(rank, failure.exitcode, arguments)
        except SignalException as error:
            return _ended_by(error.sigval, arguments)
        except (RuntimeError, OSError, ValueError) as error:
            if loud:
                raise
            print(f"error: the processes cannot be started: {one_line(error)}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        return _ended_by(signal.SIGINT, arguments)
    return 0


def _silence_torchrun() -> None:
    """Hide what its loggers say about processes that end; LOGLEVEL, which torchrun reads, shows it."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed") and "LOGLEVEL" not in os.environ:
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _kept_signals(config: type) -> list[str]:
    """The argument that keeps torchrun from handling ignored signals: under nohup, SIGHUP would end the run."""
    handled = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    kept = [name for name in handled if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(kept)  # read by versions without the argument
    return [f"--signals-to-handle={','.join(kept)}"] if hasattr(config, "signals_to_handle") else []


def _failed(rank: int, status: int, arguments: list[str]) -> int:
    """A process that ended with an exit status has said why; one that a signal ended has not."""
    if status == 128 + signal.SIGINT:
        return _ended_by(signal.SIGINT, arguments)
    if status >= 0:
        return status
    by = signal.Signals(-status)
    print(
        f"error: process {rank} was ended by {by.name}{OUT_OF_MEMORY.get(by, '')}, and the others with it"
        f"{_remedy(arguments)}",
        file=sys.stderr,
    )
    return 128 + by


def _ended_by(number: int, arguments: list[str]) -> int:
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    print(f"\ninterrupted{name}{_remedy(arguments)}", file=sys.stderr)
    return 128 + number


def _remedy(arguments: list[str]) -> str:
    trains = any(os.path.basename(argument) == "train.py" for argument in arguments)
    return "; continue with --resume" if trains else ""


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
