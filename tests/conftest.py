"""Fixtures: small models, generated data, and the shared folders that a clone alone does not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

DEVIATIONS = pytest.StashKey[dict]()  # golden file -> precision -> (worst relative deviation, arrays compared)

# Tests start processes of their own; two threads each on few cores would wait for each other.
torch.set_num_threads(1)


def shared_folder(name: str) -> Path:
    """A folder of ../shared; the test is skipped where it is absent (a user's clone)."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"no ../shared/{name} beside this checkout")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    return shared_folder("golden")


@pytest.fixture(scope="session")
def photographs() -> Path:
    return shared_folder("data")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated data set: coco/ and ade/, 16 training and 6 validation pictures of 96 pixels."""
    from arm_toolkit.shapes import write_shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=16, val=6, size=96)
    return folder


@pytest.fixture
def small_arch() -> dict:
    return dict(embed_dims=32, num_layers=4)


def run_tool(*arguments: str | Path, timeout: int = 600, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of tools/ (or any command) as a user would; output captured."""
    command = [str(a) for a in arguments]
    if command[0].endswith(".py"):
        command = [sys.executable, str(ROOT / "tools" / command[0]), *command[1:]]
    elif command[0].endswith(".sh"):
        command = ["bash", str(ROOT / "tools" / command[0]), *command[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **kwargs.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, **kwargs)


def pytest_terminal_summary(terminalreporter, config) -> None:
    deviations = config.stash.get(DEVIATIONS, {})
    if deviations:
        terminalreporter.section("worst deviation from the reference code, of the largest value of an array")
        for name, worst in sorted(deviations.items()):
            columns = [f"{p} {d:.1e} ({count} arrays)" for p, (d, count) in sorted(worst.items(), reverse=True)]
            terminalreporter.line(f"{name:24s} {', '.join(columns)}")
