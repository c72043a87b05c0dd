"""The mixer of VMamba, "2D selective scan" (VMamba, arXiv 2401.10166, second version without a gate).

Legend: B batch, H, W height and width of the map, L = H W tokens, D inner channels, K = 4 directions, N state size, R
rank of delta.
"""

import math
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops.norm import layer_norm
from .ops.orders import ScanOrders
from .ops.scan import cross_scan
from .parameters import own_linears
from .scan_order import scan_orders

DIRECTIONS = 4
NORM_EPS = 1e-5


def ss2d_orders(height: int, width: int, device: torch.device | str | None = None) -> ScanOrders:
    """Token orders (4, L) of VMamba's directions: row by row, column by column, and the reversals of both.

    ARM has the same four in another order.
    """
    row, row_back, column, column_back = scan_orders(height, width, DIRECTIONS, device=device)
    return ScanOrders.trusted(torch.stack([row, column, row_back, column_back]))


class SS2D(nn.Module):
    """Mamba-1 in four directions over one map, without a causal convolution and without a gate.

    For a map x (B, H, W, dim), with t running over the steps of direction k and all products per channel:

        u = silu(conv(in_proj(x)))                             one map of D = expand * dim channels, 3 x 3 depthwise
        r_k, B_k, C_k = x_proj_k(u)
        delta_k = softplus(dt_proj_k(r_k) + dt_proj_bias_k)
        h_t = exp(delta_t A_k) h_{t-1} + delta_t B_t u_t       A_k = -exp(A_log_k)
        y_t = <C_t, h_t> + D_k u_t
        out = out_proj(out_norm(sum_k(y_k)))

    Args:
        dim: channels of the map.
        expand: inner channels D as a multiple of dim.
        d_state: state size N.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        d_state: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.dt_rank, self.d_state = math.ceil(dim / 16), d_state
        inner = expand * dim
        self.in_proj = nn.Linear(dim, inner, bias=False, **factory)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False, **factory)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, self.dt_rank + 2 * d_state, inner, **factory))
        self.dt_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.dt_rank, **factory))
        self.dt_proj_bias = nn.Parameter(torch.empty(DIRECTIONS, inner, **factory))
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS, inner, d_state, **factory))
        self.D = nn.Parameter(torch.empty(DIRECTIONS, inner, **factory))
        self.out_norm = nn.LayerNorm(inner, eps=NORM_EPS, **factory)
        self.out_proj = nn.Linear(inner, dim, bias=False, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """VMamba's initialisation; convolution and norm have PyTorch's own."""
        for linear in own_linears(self, "in_proj", "out_proj"):
            nn.init.normal_(linear.weight, std=0.02)
        bound = self.x_proj_weight.shape[2] ** -0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.dt_proj_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        # softplus(bias) is log-uniform in [0.001, 0.1]
        step = torch.empty_like(self.dt_proj_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_proj_bias.copy_(step + torch.log(-torch.expm1(-step)))
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        self.D.fill_(1)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, for a model that contains a mixer too."""
        raise NotImplementedError("TorchScript cannot compile the scan; use torch.export.export, or torch.compile")

    def scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta before bias and softplus (B, K, L, D), B and C (B, K, L, N) of tokens u (B, L, D)."""
        batch, length, _ = u.shape
        rank, states = self.dt_rank, self.d_state
        projected = F.linear(u, self.x_proj_weight.flatten(0, 1))  # all directions read the same map
        projected = projected.unflatten(2, (DIRECTIONS, rank + 2 * states)).transpose(1, 2)  # (B, K, L, R + 2 N)
        delta, B, C = projected.split([rank, states, states], dim=-1)
        delta = delta.transpose(0, 1).flatten(1, 2) @ self.dt_proj_weight.transpose(1, 2)  # (K, B L, D)
        return delta.unflatten(1, (batch, length)).transpose(0, 1), B, C

    def scan(self, u: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """Tokens u (B, L, D) -> the sum over the directions (B, L, D), at least float32, as `out_norm` wants it."""
        delta, B, C = self.scan_inputs(u)
        A = -torch.exp(self.A_log.float() if self.A_log.dtype.itemsize < 4 else self.A_log)
        u = u.float() if u.dtype.itemsize < 4 else u  # the result has the dtype of u
        u = u.unsqueeze(1).expand(-1, DIRECTIONS, -1, -1)
        return cross_scan(u, delta, A, B, C, self.D, self.dt_proj_bias, orders, reduce="sum")

    def forward(self, x: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """x (B, H, W, dim), orders (4, L) from `ss2d_orders` -> (B, H, W, dim)."""
        height, width = x.shape[1:3]
        x = self.in_proj(x).permute(0, 3, 1, 2)
        u = F.silu(self.conv(x)).permute(0, 2, 3, 1).flatten(1, 2)
        y = layer_norm(self.scan(u, orders).to(self.out_norm.weight.dtype), self.out_norm)
        return self.out_proj(y).unflatten(1, (height, width))
