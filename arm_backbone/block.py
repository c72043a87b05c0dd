"""The MambaMLP block (ARM section 3.3): a Mamba mixer and a SwiGLU, each with a LayerNorm before it and a residual."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .mixer import MambaMixer
from .ops.norm import add_layer_norm, layer_norm
from .ops.orders import ScanOrders
from .ops.swiglu import swiglu
from .parameters import own_linears

NORM_EPS = 1e-5


class SwiGLU(nn.Module):
    """`w3(silu(w1 x) * w2 x)` with biases; hidden width 8/3 dim, for as many parameters as an MLP with ratio 4."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        hidden = dim * 4 * 2 // 3
        self.w1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.w2 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.w3 = nn.Linear(hidden, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1/sqrt(fan-in), zero biases."""
        for linear in own_linears(self, "w1", "w2", "w3"):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, gate=self.w1, value=self.w2, out=self.w3)


class Block(nn.Module):
    """`x + drop_path(mixer(norm1(x)))`, then `x + drop_path(mlp(norm2(x)))`.

    The fused operators compute what a call of their module computes: `layer_norm(x, norm)` is `norm(x)`,
    `add_layer_norm(x, y, norm)` is `(x + y, norm(x + y))`, `gated_linear(x, z, linear)` is `linear(x * silu(z))`, and
    so on. They simply call a module that has hooks or is of another class.

    Args:
        dim: channels.
        scans: scan directions K.
        drop_path: stochastic depth rate of both branches, drawn per sample.
        num_blocks: blocks in the network; scales the initial weights of the mixer's out_proj.
        reference_init, device, dtype: as in `MambaMixer`.
    """

    def __init__(
        self,
        dim: int,
        scans: int,
        drop_path: float,
        num_blocks: int,
        reference_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.mixer = MambaMixer(dim, scans, residual_layers=num_blocks, reference_init=reference_init, **factory)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.mlp = SwiGLU(dim, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """x (B, L, D), orders (K, L) or (B, K, L) -> (B, L, D)."""
        branch = self.drop_path(self.mixer(layer_norm(x, self.norm1), orders))
        x, normed = add_layer_norm(x, branch, self.norm2)
        return x + self.drop_path(self.mlp(normed))
