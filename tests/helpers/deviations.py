"""Deviations from the reference code, collected by the golden tests and printed at the end of a run."""

import pytest

DEVIATIONS = pytest.StashKey[dict]()  # golden file -> precision -> (worst relative deviation, arrays compared)
