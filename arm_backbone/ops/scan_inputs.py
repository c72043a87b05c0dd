"""The eight tensors of a scan, as every back end takes them.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Inputs of `cross_scan`, validated by it.

    Attributes:
        u: (B, K, L, D), in token order; one map expanded over K counts as shared and is not copied.
        delta: (B, K, L, D), in token order, before bias and softplus.
        A: (K, D, N).
        B, C: (B, K, L, N), in token order.
        D, delta_bias: (K, D) or None.
        orders: (K, L) int64 permutations.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    orders: Tensor


def divisor(inputs: ScanInputs, reduce: str) -> int:
    """What the sum over directions is divided by: K for reduce="mean", 1 for "sum"."""
    return inputs.A.shape[0] if reduce == "mean" else 1
