"""Operators of the mixer and block: selective scan and causal convolution in several token orders, gate, norm.

`dispatch` decides which back end runs; `scan_backend` chooses one.
"""

from .conv import cross_conv
from .dispatch import BACKENDS, resolve_backend, scan_backend
from .gate import gated_linear, silu_gate
from .inner import mamba_inner, uses_fused_inner
from .library import compute_dtype
from .norm import add_layer_norm, layer_norm
from .orders import ScanOrders
from .scan import cross_scan, scan_flops
from .single_scan import selective_scan

__all__ = [
    "BACKENDS",
    "ScanOrders",
    "add_layer_norm",
    "compute_dtype",
    "cross_conv",
    "cross_scan",
    "gated_linear",
    "layer_norm",
    "mamba_inner",
    "resolve_backend",
    "scan_backend",
    "scan_flops",
    "selective_scan",
    "silu_gate",
    "uses_fused_inner",
]
