"""The Mamba mixer with one scan (pretraining) or four (finetuning): ARM section 3.3.

Legend: B batch, K scan directions, L tokens, D channels, N state size, R rank of delta, W convolution taps.
"""

import math

import torch
from torch import Tensor, nn

from .ops import gated_linear, mamba_inner


class MambaMixer(nn.Module):
    """Mamba-1 with expansion 1 whose directions share the projections in and out, and the gate.

    Convolution, x_proj, dt_proj, A and D belong to a direction and carry a leading K. The outputs of the directions
    are averaged, then gated once, which equals gating each.

    Args:
        dim: channels D.
        scans: directions K.
        residual_layers: number of blocks in the network; out_proj starts smaller by its square root.
        reference_init: see `reset_parameters`.
    """

    def __init__(
        self,
        dim: int,
        scans: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        residual_layers: int = 1,
        reference_init: bool = False,
    ) -> None:
        super().__init__()
        self.residual_layers, self.reference_init = residual_layers, reference_init
        self.dt_rank, self.d_state = math.ceil(dim / 16), d_state
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(scans, dim, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(scans, dim))
        self.x_proj_weight = nn.Parameter(torch.empty(scans, self.dt_rank + 2 * d_state, dim))
        self.dt_proj_weight = nn.Parameter(torch.empty(scans, dim, self.dt_rank))
        self.dt_proj_bias = nn.Parameter(torch.empty(scans, dim))
        self.A_log = nn.Parameter(torch.empty(scans, dim, d_state))
        self.D = nn.Parameter(torch.empty(scans, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation, with the same distribution in every direction.

        When it trains from scratch, the reference code zeroes the delta bias of directions 2 to 4; with
        `reference_init` this does, too.
        """
        dim = self.D.shape[1]
        for weight in (self.in_proj.weight, self.x_proj_weight, self.out_proj.weight):
            weight.uniform_(-(dim**-0.5), dim**-0.5)
        self.out_proj.weight /= math.sqrt(self.residual_layers)
        taps = self.conv_weight.shape[2]
        self.conv_weight.uniform_(-(taps**-0.5), taps**-0.5)
        self.conv_bias.uniform_(-(taps**-0.5), taps**-0.5)
        self.dt_proj_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        # softplus(bias) is log-uniform in [0.001, 0.1], at least 1e-4
        step = torch.empty_like(self.dt_proj_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_proj_bias.copy_(step + torch.log(-torch.expm1(-step)))
        if self.reference_init:
            self.dt_proj_bias[1:].zero_()
        self.A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float32).log().expand_as(self.A_log))
        self.D.fill_(1)

    def forward(self, x: Tensor, orders: Tensor) -> Tensor:
        """x (B, L, D), orders (K, L) -> (B, L, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        conv, projections = (self.conv_weight, self.conv_bias), (self.x_proj_weight, self.dt_proj_weight)
        y = mamba_inner(x, *conv, *projections, self.A_log, self.D, self.dt_proj_bias, orders)
        return gated_linear(y, z, self.out_proj)
