"""Folders that tests read."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def shared_folder(name: str) -> Path:
    """A folder of ../shared; without it (in a user's clone) the test is skipped."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"no ../shared/{name} next to this checkout")
    return path
