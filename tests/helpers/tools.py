"""Running the tools as a user would: in a process of their own, or in this one to save the imports."""

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from mmengine.utils import ManagerMixin

from .paths import ROOT


def run_tool(*arguments: str | Path, timeout: int = 600, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of tools/ (or any command) as a user would; output captured."""
    command = [str(a) for a in arguments]
    if command[0].endswith(".py"):
        command = [sys.executable, str(ROOT / "tools" / command[0]), *command[1:]]
    elif command[0].endswith(".sh"):
        command = ["bash", str(ROOT / "tools" / command[0]), *command[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **kwargs.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, **kwargs)


@contextmanager
def own_globals() -> Iterator[None]:
    """mmengine keeps loggers, visualizers and scopes by name as long as a process lives: every run gets its own."""

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
    """Run a script of tools/ in this process (six seconds of imports less) and return its exit status."""
    argv = [str(ROOT / "tools" / script), *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), own_globals():
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0
