"""Deviations from the reference code, collected by the golden tests and printed at the end of a run."""

import pytest

DEVIATIONS = pytest.StashKey[dict]()  # golden file -> precision -> (worst relative deviation, arrays compared)


def merge_deviations(into: dict, found: dict) -> None:
    """Add the deviations that one worker of pytest-xdist has found, in place."""
    for file, precisions in found.items():
        merged = into.setdefault(file, {})
        for precision, (worst, count) in precisions.items():
            before, counted = merged.get(precision, (0.0, 0))
            merged[precision] = max(before, worst), counted + count
