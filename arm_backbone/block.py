"""The MambaMLP block (ARM section 3.3): a Mamba mixer and a SwiGLU, both behind LayerNorm and with a residual."""

from timm.layers import DropPath
from torch import Tensor, nn

from .mixer import MambaMixer
from .ops import add_layer_norm, computing_type, gated_linear, layer_norm

NORM_EPS = 1e-5


class SwiGLU(nn.Module):
    """`w3(silu(w1 x) * w2 x)` with biases; the hidden width 8/3 dim keeps the parameters of a ratio-4 MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * 4 * 2 // 3
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs), zero biases."""
        for linear in (self.w1, self.w2, self.w3):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(computing_type(x))  # once, not by each of the two
        return gated_linear(self.w2(x), self.w1(x), self.w3)


class Block(nn.Module):
    """`x + drop_path(mixer(norm1(x)))`, then `x + drop_path(mlp(norm2(x)))`.

    Args:
        dim: channels.
        scans: scan directions K.
        drop_path: stochastic depth rate of both branches, drawn per sample.
        num_blocks: blocks in the network (scales the mixer's initial output).
        reference_init: see `MambaMixer`.
    """

    def __init__(self, dim: int, scans: int, drop_path: float, num_blocks: int, reference_init: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mixer = MambaMixer(dim, scans, residual_layers=num_blocks, reference_init=reference_init)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = SwiGLU(dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, orders: Tensor) -> Tensor:
        """x (B, L, D), orders (K, L) -> (B, L, D)."""
        branch = self.drop_path(self.mixer(layer_norm(x, self.norm1), orders))
        x, normed = add_layer_norm(x, branch, self.norm2)
        return x + self.drop_path(self.mlp(normed))
