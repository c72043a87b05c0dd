"""Models that the tests of predictions share."""

from pathlib import Path

import pytest

from tests.helpers.untrained import write_models


@pytest.fixture(scope="session")
def models(shapes, tmp_path_factory) -> dict[str, Path]:
    """Task -> checkpoint of a small model with random weights; its configuration is beside it."""
    return write_models(shapes, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def images(shapes) -> list[Path]:
    return sorted((shapes / "coco/val2017").iterdir())
