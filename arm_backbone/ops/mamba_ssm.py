"""Selective scan by the CUDA kernel of the stock `mamba-ssm` package (1.2 and 2.x): one call for all directions.

The directions become groups of channels, as the kernel allows B and C to differ between groups.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

from torch import Tensor


def _in_order(x: Tensor, orders: Tensor) -> Tensor:
    """(B, K, L, C) in token order -> (B, K, C, L) in scan order."""
    index = orders[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[3])
    return x.gather(2, index).transpose(2, 3)


def cross_scan_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments as `arm_backbone.ops.cross_scan`; y (B, L, D) and the last state (B, K, D, N). Differentiable."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

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
        delta_softplus,
        True,
    )
    out = out.unflatten(1, (directions, channels)).transpose(2, 3)  # (B, K, L, D) in scan order
    index = orders[None, :, :, None].expand_as(out)
    y = out.new_empty(out.shape).scatter(2, index, out).mean(1)
    return y, last_state.unflatten(1, (directions, channels))
