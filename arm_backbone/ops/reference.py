"""Selective scan by the book: one step a token, differentiated by autograd. The oracle of every other back end.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_scan_reference(
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
    """Arguments as `arm_backbone.ops.cross_scan`; any float type, at least float32 inside.

    Returns:
        y (B, L, D), the mean over the directions, in token order, and the last state (B, K, D, N).
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    out_dtype = u.dtype
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    batch, directions, length, channels = u.shape
    index = orders[None, :, :, None].expand(batch, -1, -1, -1)
    u, delta, B, C = (x.gather(2, index.expand(-1, -1, -1, x.shape[-1])) for x in (u, delta, B, C))

    state = u.new_zeros(batch, directions, channels, A.shape[-1])
    outputs = []
    for t in range(length):
        decay = torch.exp(delta[:, :, t, :, None] * A)  # (B, K, D, N)
        state = decay * state + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, :, t, None]
        outputs.append((state * C[:, :, t, None]).sum(-1))
    y = torch.stack(outputs, 2) if outputs else torch.zeros_like(u)  # (B, K, L, D) in scan order
    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    y = torch.zeros_like(y).scatter(2, index.expand_as(y), y).mean(1)
    return y.to(out_dtype), state
