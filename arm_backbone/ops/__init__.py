"""Operators of the mixer: selective scan and causal convolution, in any number of token orders."""

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
    "scan_flops",
    "selective_scan",
    "silu_gate",
]
