"""The Mamba mixer with one scan (pretraining) or four (finetuning): ARM section 3.3.

Legend: B batch, K scan directions, L tokens, D channels, N state size, R rank of delta, W convolution taps.
"""

import math
from typing import NoReturn

import torch
from torch import Tensor, nn

from .ops.gate import gated_linear
from .ops.inner import mamba_inner
from .ops.orders import ScanOrders
from .parameters import own_linears


class MambaMixer(nn.Module):
    """Mamba-1 in K scan directions, which share the input projection, the gate and the output projection.

    For tokens x (B, L, dim), with t running over the steps of direction k and all products per channel:

        x, z = in_proj(x)                                      two maps of D = expand * dim channels
        u_k = silu(conv_k(x))                                  causal along the scan order
        r_k, B_k, C_k = x_proj_k(u_k)
        delta_k = softplus(dt_proj_k(r_k) + dt_proj_bias_k)
        h_t = exp(delta_t A_k) h_{t-1} + delta_t B_t u_t       A_k = -exp(A_log_k)
        y_t = <C_t, h_t> + D_k u_t
        out = out_proj(mean_k(y_k) * silu(z))                  gating the mean equals gating each direction

    Each direction has its own conv, x_proj, dt_proj, A_log and D: these parameters have a leading dimension K.

    Args:
        dim: channels of the tokens.
        scans: directions K.
        d_state: state size N.
        d_conv: convolution taps W.
        expand: inner channels D as a multiple of dim; ARM has 1.
        residual_layers: blocks in the network; out_proj is initialised with a factor 1/sqrt(residual_layers).
        reference_init: zero the delta bias of directions 2 to 4, as the reference code does from scratch.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        scans: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        residual_layers: int = 1,
        reference_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.dt_rank, self.d_state = math.ceil(dim / 16), d_state
        self.residual_layers, self.reference_init = residual_layers, reference_init
        inner = expand * dim
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **factory)
        self.conv_weight = nn.Parameter(torch.empty(scans, inner, d_conv, **factory))
        self.conv_bias = nn.Parameter(torch.empty(scans, inner, **factory))
        self.x_proj_weight = nn.Parameter(torch.empty(scans, self.dt_rank + 2 * d_state, inner, **factory))
        self.dt_proj_weight = nn.Parameter(torch.empty(scans, inner, self.dt_rank, **factory))
        self.dt_proj_bias = nn.Parameter(torch.empty(scans, inner, **factory))
        self.A_log = nn.Parameter(torch.empty(scans, inner, d_state, **factory))
        self.D = nn.Parameter(torch.empty(scans, inner, **factory))
        self.out_proj = nn.Linear(inner, dim, bias=False, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation, with the same distribution in every direction; see `reference_init`."""
        in_proj, out_proj = own_linears(self, "in_proj", "out_proj")
        for weight in (in_proj.weight, self.x_proj_weight, out_proj.weight):
            fan_in = weight.shape[-1]
            weight.uniform_(-(fan_in**-0.5), fan_in**-0.5)
        out_proj.weight /= math.sqrt(self.residual_layers)
        taps = self.conv_weight.shape[2]
        self.conv_weight.uniform_(-(taps**-0.5), taps**-0.5)
        self.conv_bias.uniform_(-(taps**-0.5), taps**-0.5)
        self.dt_proj_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        # softplus(bias) is log-uniform in [0.001, 0.1]; the clamp is Mamba's dt_init_floor
        step = torch.empty_like(self.dt_proj_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_proj_bias.copy_(step + torch.log(-torch.expm1(-step)))
        if self.reference_init:
            self.dt_proj_bias[1:].zero_()
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        self.D.fill_(1)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, for a model that contains a mixer too."""
        raise NotImplementedError("TorchScript cannot compile the scan; use torch.export.export, or torch.compile")

    def forward(self, x: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """x (B, L, dim), orders (K, L) or (B, K, L) -> (B, L, dim)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        # a tracer runs this twice, with and without gradients, and wants one program
        inference = not torch.is_grad_enabled() and not torch.jit.is_tracing()
        y = mamba_inner(
            x,
            conv_weight=self.conv_weight,
            conv_bias=self.conv_bias,
            x_proj_weight=self.x_proj_weight,
            dt_proj_weight=self.dt_proj_weight,
            A_log=self.A_log,
            D=self.D,
            delta_bias=self.dt_proj_bias,
            orders=orders,
            gate=z if inference else None,
        )
        return self.out_proj(y) if inference else gated_linear(y, z, self.out_proj)
