"""Reference selective scan: a loop over tokens, differentiated by autograd. All other back ends are tested against it.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .scan_inputs import ScanInputs


def scan(inputs: ScanInputs, softplus: bool, reduce: str) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the final state (B, K, D, N); computes in float32, or in float64 if u is float64."""
    dtype, out_dtype = torch.promote_types(inputs.u.dtype, torch.float32), inputs.u.dtype
    u, delta, A, B, C = (x.to(dtype) for x in inputs[:5])
    D, delta_bias, orders = inputs[5:]
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if softplus:
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
    y = torch.zeros_like(y).scatter(2, index.expand_as(y), y)
    y = y.mean(1) if reduce == "mean" else y.sum(1)
    return y.to(out_dtype), state
