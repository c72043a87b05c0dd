"""Fixtures that many tests use, the order of the tests, and the lines that pytest prints at the end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.deviations import DEVIATIONS, merge_deviations
from tests.helpers.golden import PRECISIONS, Golden
from tests.helpers.paths import shared_folder

# Tests run in parallel and start further processes: more threads would oversubscribe the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    return shared_folder("golden")


@pytest.fixture(scope="session")
def golden_encoders() -> Path:
    return shared_folder("golden_encoders")


@pytest.fixture(params=PRECISIONS)
def load_encoder(request, golden_encoders):
    """Opens a golden file of a comparison encoder by name, once in each precision."""
    deviations = request.config.stash.setdefault(DEVIATIONS, {})
    return lambda name: Golden(golden_encoders / f"{name}.npz", request.param, deviations)


@pytest.fixture(scope="session")
def photographs() -> Path:
    return shared_folder("data")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated data set: coco/ and ade/, 16 training and 6 validation images of 96 pixels."""
    from arm_toolkit.datasets.shapes import write_shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=16, val=6, size=96)
    return folder


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    """Tools choose for their whole process how float32 matrices are multiplied."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def small_arch() -> dict:
    return dict(embed_dims=32, num_layers=4)


# ------------------------------------------------------------------------------------------- the order of tests


def pytest_collection_modifyitems(items) -> None:
    """Mark the golden tests, skip GPU tests if there is no GPU, and run the longest tests first.

    With several workers, a single test goes to the next free worker, and an `xdist_group` goes to one worker as a
    whole. With long trainings first and single short tests last, no worker is idle at the end.
    """
    for item in items:
        if {"golden", "golden_encoders"} & set(item.fixturenames):
            item.add_marker("golden")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))

    def rank(item) -> int:
        slow = item.get_closest_marker("slow")
        if slow and slow.kwargs.get("first"):
            return 0
        return 1 if slow else 2 if item.get_closest_marker("xdist_group") else 3

    items.sort(key=rank)


# ------------------------------------------------------------------------------------------- the closing lines


class Times:
    """Sums up how long the tests of each part of the suite took, and prints it."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds = dict(quick=0.0, slow=0.0)

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds["slow" if "slow" in report.keywords else "quick"] += report.duration

    def pytest_terminal_summary(self, terminalreporter, config) -> None:
        workers = getattr(config.option, "numprocesses", None) or 1
        quick, slow = self.seconds.values()
        terminalreporter.section("time")
        terminalreporter.line(
            f"tests: quick part {quick:.0f} s, slow part {slow:.0f} s (sums over tests), "
            f"{workers} worker{'s' * (workers > 1)}, {time.perf_counter() - self.start:.0f} s from start to end"
        )


def pytest_configure(config) -> None:
    if not hasattr(config, "workerinput"):  # xdist workers forward their reports to the main process
        config.pluginmanager.register(Times())


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deviations"] = session.config.stash.get(DEVIATIONS, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    found = getattr(node, "workeroutput", {}).get("deviations", {})
    merge_deviations(node.config.stash.setdefault(DEVIATIONS, {}), found)


def pytest_terminal_summary(terminalreporter, config) -> None:
    deviations = config.stash.get(DEVIATIONS, {})
    if deviations:
        terminalreporter.section("worst deviation from the reference code, relative to the largest value of an array")
        for name, worst in sorted(deviations.items()):
            columns = [f"{p} {d:.1e} ({count} arrays)" for p, (d, count) in sorted(worst.items(), reverse=True)]
            terminalreporter.line(f"{name:24s} {', '.join(columns)}")
