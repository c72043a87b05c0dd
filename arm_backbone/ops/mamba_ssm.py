"""Selective scan with the CUDA kernel of the stock `mamba-ssm` package (1.2 and 2.x): one call for all directions.

In the kernel, B and C may differ between groups of channels, so each direction becomes a group.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

from torch import Tensor

from .scan_inputs import ScanInputs


def _in_order(x: Tensor, orders: Tensor) -> Tensor:
    """(B, K, L, C) in token order -> (B, K, C, L) in scan order."""
    index = orders[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[3])
    return x.gather(2, index).transpose(2, 3)


def scan(inputs: ScanInputs, softplus: bool, reduce: str) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the final state (B, K, D, N)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, A, B, C, D, delta_bias, orders = inputs
    directions, channels, _ = A.shape
    out, last_state = selective_scan_fn(
        _in_order(u, orders).flatten(1, 2).contiguous(),
        _in_order(delta, orders).flatten(1, 2).contiguous(),
        A.float().flatten(0, 1),
        _in_order(B, orders).contiguous(),
        _in_order(C, orders).contiguous(),
        None if D is None else D.float().flatten(),
        None,
        None if delta_bias is None else delta_bias.float().flatten(),
        softplus,
        True,
    )
    out = out.unflatten(1, (directions, channels)).transpose(2, 3)  # (B, K, L, D) in scan order
    index = orders[None, :, :, None].expand_as(out)
    y = out.new_empty(out.shape).scatter(2, index, out)
    y = y.mean(1) if reduce == "mean" else y.sum(1)
    return y, last_state.unflatten(1, (directions, channels))
