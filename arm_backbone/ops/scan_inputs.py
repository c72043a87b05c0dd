"""The eight tensors of a scan, in the form that every back end takes.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Validated inputs of a scan.

    Attributes:
        u: (B, K, L, D), in token order; a (B, L, D) tensor expanded over K is not copied.
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
    """Divisor of the sum over directions: K for reduce="mean", 1 for "sum"."""
    return inputs.A.shape[0] if reduce == "mean" else 1
