"""Running the tools in a separate process, as a user would, or in this one to save the imports."""

import io
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from mmengine.utils import ManagerMixin

from .paths import ROOT


def run_tool(*arguments: str | Path, timeout: int = 600, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of tools/ (or any command) in a separate process, the environment activated; capture its output."""
    command = [str(a) for a in arguments]
    if command[0].endswith(".py"):
        command = [sys.executable, str(ROOT / "tools" / command[0]), *command[1:]]
    elif command[0].endswith(".sh"):
        command = ["bash", str(ROOT / "tools" / command[0]), *command[1:]]
    activated = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    env = {**os.environ, **activated, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, **kwargs)


@contextmanager
def own_globals() -> Iterator[None]:
    """Give a run loggers, visualizers and scopes of its own; mmengine keeps them by name for the whole process."""

    def forget(kind: type) -> None:
        kind._instance_dict.clear()
        for child in kind.__subclasses__():
            forget(child)

    forget(ManagerMixin)
    try:
        yield
    finally:
        forget(ManagerMixin)


def call_tool(script: str, *arguments) -> int:
    """Run a script of tools/ in this process, which has its imports already, and return its exit status."""
    argv = [str(ROOT / "tools" / script), *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), own_globals():
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0


def invoke(script: str, *arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Like `run_tool` for a Python script, but in this process."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd or before)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = call_tool(script, *arguments)
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess([script, *arguments], status, out.getvalue(), err.getvalue())
