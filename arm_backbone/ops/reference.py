"""Reference: a scan that loops over tokens, and a convolution, in operations that PyTorch differentiates in any mode.

All other back ends are tested against this scan. Where kernels cannot give a derivative (forward-mode, torch.func),
the back ends "reference" and "torch" compute with these functions.

Legend: B batch, K scan directions, L tokens, D channels, N state size, W convolution taps.
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


def conv(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    """x (B, L, D), weight (K, D, W), bias (K, D), orders (K, L) -> (B, K, L, D), SiLU included."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    (_, length, channels), taps = x.shape, weight.shape[2]

    def visit(tokens: Tensor, steps: Tensor) -> Tensor:
        """Tokens (B, K, L, D) rearranged by steps (K, L)."""
        return tokens.gather(2, steps[None, :, :, None].expand(x.shape[0], -1, -1, channels))

    scanned = visit(x.unsqueeze(1).expand(-1, len(orders), -1, -1), orders)
    padded = F.pad(scanned, (0, 0, taps - 1, 0))
    products = (padded[:, :, j : j + length] * weight[:, None, :, j] for j in range(taps))
    return visit(F.silu(sum(products, bias[:, None])), orders.argsort(1))
