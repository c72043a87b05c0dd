"""Folders that tests read."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def shared_folder(name: str) -> Path:
    """A folder of ../shared; the test is skipped where it is absent (a user's clone)."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"no ../shared/{name} beside this checkout")
    return path
