"""Operators of the mixer: selective scan and causal convolution, in any number of token orders."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .conv import cross_conv
from .dispatch import BACKENDS, computing_type, resolve_backend
from .gate import gated_linear, silu_gate
from .inner import mamba_inner, runs_as_one
from .norm import add_layer_norm, layer_norm
from .scan import cross_scan, scan_flops, selective_scan

__all__ = [
    "BACKENDS",
    "add_layer_norm",
    "computing_type",
    "cross_conv",
    "cross_scan",
    "gated_linear",
    "layer_norm",
    "mamba_inner",
    "resolve_backend",
    "runs_as_one",
    "scan_backend",
    "scan_flops",
    "selective_scan",
    "silu_gate",
]


@contextmanager
def scan_backend(name: str) -> Iterator[None]:
    """Choose the back end of all scans in a `with` block; it overrides ARM_SCAN_BACKEND."""
    before = os.environ.get("ARM_SCAN_BACKEND")
    os.environ["ARM_SCAN_BACKEND"] = name
    try:
        yield
    finally:
        del os.environ["ARM_SCAN_BACKEND"]
        if before is not None:
            os.environ["ARM_SCAN_BACKEND"] = before
