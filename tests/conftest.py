"""Fixtures: small models, generated data, and the shared folders that a clone alone does not have."""

from pathlib import Path

import pytest
import torch

from helpers.deviations import DEVIATIONS
from helpers.paths import shared_folder

# Tests start processes of their own; two threads each on few cores would wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    return shared_folder("golden")


@pytest.fixture(scope="session")
def photographs() -> Path:
    return shared_folder("data")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated data set: coco/ and ade/, 16 training and 6 validation pictures of 96 pixels."""
    from arm_toolkit.datasets.shapes import write_shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=16, val=6, size=96)
    return folder


@pytest.fixture
def small_arch() -> dict:
    return dict(embed_dims=32, num_layers=4)


def pytest_terminal_summary(terminalreporter, config) -> None:
    deviations = config.stash.get(DEVIATIONS, {})
    if deviations:
        terminalreporter.section("worst deviation from the reference code, of the largest value of an array")
        for name, worst in sorted(deviations.items()):
            columns = [f"{p} {d:.1e} ({count} arrays)" for p, (d, count) in sorted(worst.items(), reverse=True)]
            terminalreporter.line(f"{name:24s} {', '.join(columns)}")
