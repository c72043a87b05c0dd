"""Operators of the mixer: selective scan and causal convolution, in any number of token orders."""

from .conv import cross_conv
from .gate import silu_gate
from .scan import BACKENDS, cross_scan, resolve_backend, scan_flops, selective_scan

__all__ = ["BACKENDS", "cross_conv", "cross_scan", "resolve_backend", "scan_flops", "selective_scan", "silu_gate"]
