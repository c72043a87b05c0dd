"""Other implementations of the scan, the mixer and the MLP, which the benchmark compares with.

Legend: B batch, K scan directions, L tokens, D channels, N state size, W taps of the convolution.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from arm_backbone.block import SwiGLU
from arm_backbone.mixer import MambaMixer
from arm_backbone.scan_order import inverse_orders


def is_single(orders: Tensor) -> bool:
    """Whether there is only one direction, which in the benchmark visits tokens as they lie: nothing is rearranged."""
    return len(orders) == 1


def in_scan_order(u, delta, B, C, delta_bias, orders) -> list[Tensor]:
    """u, delta (after softplus), B and C as float32 (B, K, L, .), in each direction's scan order."""
    pick = (slice(None), torch.arange(len(orders), device=u.device).unsqueeze(1), orders)
    u, delta, B, C = ((x if is_single(orders) else x[pick]).float() for x in (u, delta, B, C))
    return [u, F.softplus(delta + delta_bias.unsqueeze(1)), B, C]


def in_token_order(y: Tensor, orders: Tensor) -> Tensor:
    """(B, K, L, D) in each direction's scan order -> mean over directions (B, L, D) in token order."""
    if is_single(orders):
        return y[:, 0]
    directions = torch.arange(len(orders), device=y.device).unsqueeze(1)
    return y[:, directions, inverse_orders(orders)].mean(1)


def selective_scan_loop(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool) -> Tensor:
    """One direction as in mamba-ssm's `selective_scan_ref`: all decays and inputs first, then a loop over tokens.

    Arguments and result are those of `arm_backbone.ops.selective_scan`, always with softplus and without a gate.
    """
    assert delta_softplus and z is None
    u_f, delta, B, C = (x.float() for x in (u, delta, B, C))
    delta = F.softplus(delta + delta_bias.unsqueeze(1))
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u_f)
    state, outputs = torch.zeros_like(inputs[:, :, 0]), []
    for t in range(u.shape[2]):
        state = decays[:, :, t] * state + inputs[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return (torch.stack(outputs, 2) + D.unsqueeze(1) * u_f).to(u.dtype)


def unbind_scan(u, delta, A, B, C, D, delta_bias, orders) -> Tensor:
    """A loop over tokens for all directions at once, with `unbind` instead of indexing: its backward takes linear time.

    Arguments and result are those of `arm_backbone.ops.cross_scan`.
    """
    u_s, delta_s, B_s, C_s = in_scan_order(u, delta, B, C, delta_bias, orders)
    decays = torch.exp(delta_s.unsqueeze(4) * A.unsqueeze(1)).unbind(2)  # each (B, K, D, N)
    inputs = ((delta_s * u_s).unsqueeze(4) * B_s.unsqueeze(3)).unbind(2)
    state, outputs = torch.zeros_like(inputs[0]), []
    for decay, x, c in zip(decays, inputs, C_s.unbind(2)):
        state = decay * state + x
        outputs.append((state @ c.unsqueeze(3)).squeeze(3))
    y = torch.stack(outputs, 2) + D.unsqueeze(1) * u_s
    return in_token_order(y, orders).to(u.dtype)


def parallel_scan(u, delta, A, B, C, D, delta_bias, orders, *, pscan: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A parallel prefix scan over the tokens. Arguments and result are those of `arm_backbone.ops.cross_scan`.

    Args:
        pscan: mambapy's; both of its arguments and its result are (B, L, D, N).
    """
    u_s, delta_s, B_s, C_s = in_scan_order(u, delta, B, C, delta_bias, orders)
    decay = torch.exp(delta_s.unsqueeze(4) * A.unsqueeze(1)).flatten(0, 1)
    inputs = ((delta_s * u_s).unsqueeze(4) * B_s.unsqueeze(3)).flatten(0, 1)
    states = pscan(decay, inputs)
    y = (states @ C_s.flatten(0, 1).unsqueeze(3)).squeeze(3).unflatten(0, u.shape[:2]) + D.unsqueeze(1) * u_s
    return in_token_order(y, orders).to(u.dtype)


def chunked_scan(u, delta, A, B, C, D, delta_bias, orders, *, chunk: int = 64) -> Tensor:
    """Chunks of tokens one after the other, each by cumulative sums: inputs are divided by the decay up to them.

    The division overflows for large steps or chunks. Arguments and result are those of `arm_backbone.ops.cross_scan`.
    """
    u_s, delta_s, B_s, C_s = in_scan_order(u, delta, B, C, delta_bias, orders)
    state, outputs = 0, []
    for u_c, delta_c, B_c, C_c in zip(*(x.split(chunk, 2) for x in (u_s, delta_s, B_s, C_s)), strict=True):
        decay = torch.exp(delta_c.cumsum(2).unsqueeze(4) * A.unsqueeze(1))  # since the chunk's start, (B, K, ., D, N)
        inputs = (delta_c * u_c).unsqueeze(4) * B_c.unsqueeze(3)
        states = decay * ((inputs / decay).cumsum(2) + state)
        outputs.append((states @ C_c.unsqueeze(4)).squeeze(4))
        state = states[:, :, -1:]
    y = torch.cat(outputs, 2) + D.unsqueeze(1) * u_s
    return in_token_order(y, orders).to(u.dtype)


def four_calls(u, delta, A, B, C, D, delta_bias, orders, *, selective_scan_fn: Callable) -> Tensor:
    """One call of mamba-ssm's kernel (or a function like it) for each direction, on rearranged tokens.

    Arguments are those of `arm_backbone.ops.cross_scan`, but with the tokens last, as that kernel takes them: u is
    (B, K, D, L). delta, B and C are already in each direction's scan order, because they are projections of rearranged
    tokens. The result is (B, D, L), in token order.
    """
    if is_single(orders):  # squeezed, since the gradient of an index fills a tensor of zeros first
        u, delta, B, C = (x.squeeze(1) for x in (u, delta, B, C))
        return selective_scan_fn(u, delta, A[0], B, C, D[0], None, delta_bias[0], delta_softplus=True)
    total = 0
    for k, (order, inverse) in enumerate(zip(orders, inverse_orders(orders))):
        x = u[:, k].index_select(2, order)
        y = selective_scan_fn(x, delta[:, k], A[k], B[:, k], C[:, k], D[k], None, delta_bias[k], delta_softplus=True)
        total = total + y.index_select(2, inverse)
    return total / len(orders)


def one_call(u, delta, A, B, C, D, delta_bias, orders, *, selective_scan_fn: Callable) -> Tensor:
    """One call for all directions, whose channels lie one after the other, as in VMamba; B and C differ by group.

    Arguments and result are those of `four_calls`. VMamba rearranges the tokens in Triton, this function in PyTorch.
    """
    if is_single(orders):
        return four_calls(u, delta, A, B, C, D, delta_bias, orders, selective_scan_fn=selective_scan_fn)
    x = torch.stack([u[:, k].index_select(2, order) for k, order in enumerate(orders)], 1)
    x, delta = x.flatten(1, 2), delta.flatten(1, 2)
    y = selective_scan_fn(x, delta, A.flatten(0, 1), B, C, D.flatten(), None, delta_bias.flatten(), delta_softplus=True)
    directions = zip(y.chunk(len(orders), 1), inverse_orders(orders), strict=True)
    return sum(y_k.index_select(2, inverse) for y_k, inverse in directions) / len(orders)


def usual_mixer(mixer: MambaMixer, x: Tensor, orders: Tensor, *, selective_scan_fn: Callable, conv_fn: Callable):
    """The mixer as in the reference code: each direction rearranges the tokens and runs its own convolution and scan.

    Unlike mamba-ssm's `mamba_inner_fn`, it keeps all activations for the backward.

    Args:
        conv_fn: causal convolution with SiLU: x (B, D, L), weights (D, W), biases (D,).
    """
    xz = mixer.in_proj(x).transpose(1, 2)  # (B, 2 D, L)
    total = 0
    for k, (order, inverse) in enumerate(zip(orders, inverse_orders(orders))):
        x_k, z = xz.index_select(2, order).chunk(2, dim=1)
        x_k = conv_fn(x_k.contiguous(), mixer.conv_weight[k], mixer.conv_bias[k])
        projected = F.linear(x_k.transpose(1, 2), mixer.x_proj_weight[k])
        delta, B, C = projected.split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        delta, B, C = (t.transpose(1, 2).contiguous() for t in (F.linear(delta, mixer.dt_proj_weight[k]), B, C))
        A, D, bias = -torch.exp(mixer.A_log[k].float()), mixer.D[k], mixer.dt_proj_bias[k]
        y = selective_scan_fn(x_k.to(delta.dtype), delta, A, B, C, D, z.to(delta.dtype), bias, delta_softplus=True)
        total = total + y.index_select(2, inverse)
    return mixer.out_proj((total / len(orders)).transpose(1, 2))


def usual_swiglu(mlp: SwiGLU, x: Tensor) -> Tensor:
    """The SwiGLU with PyTorch's own operators."""
    return mlp.w3(F.silu(mlp.w1(x)) * mlp.w2(x))


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv1d_fn` with SiLU in plain PyTorch."""
    taps = weight.shape[1]
    y = F.conv1d(x, weight.unsqueeze(1).to(x.dtype), bias.to(x.dtype), padding=taps - 1, groups=len(weight))
    return F.silu(y[..., : x.shape[2]])
