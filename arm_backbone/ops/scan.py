"""Selective scan (Mamba-1) over one or several token orders: the public functions and the registered operator.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .dispatch import differentiable_scan, resolve_backend, scan_kernels
from .layout import empty_by_direction
from .library import define_op, register_backward
from .orders import ScanOrders, order_tensor
from .scan_inputs import ScanInputs

REDUCE = ("mean", "sum")


def cross_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: ScanOrders | Tensor,
    delta_softplus: bool = True,
    *,
    reduce: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Scan the same tokens in K directions, each with its own parameters (ARM section 3.3).

    For the steps t of each direction: `h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`, `y_t = <C_t, h_t> + D u_t`. The
    state is float32 (float64 for float64 input).

    Args:
        u, delta: (B, K, L, D), in token order; delta before bias and softplus. If all directions read one u (B, L, D),
            give `u.unsqueeze(1).expand(-1, K, -1, -1)`, which is not copied.
        A: (K, D, N), negative for a decaying state.
        B, C: (B, K, L, N), in token order.
        D, delta_bias: (K, D) or None.
        orders: (K, L); `orders[k, t]` is the token that direction k visits at step t. A plain int64 tensor is validated
            at each call, `ScanOrders` only once, on construction.
        delta_softplus: apply softplus to delta (after the bias).
        reduce: "mean" or "sum", over the directions.
        backend: see `resolve_backend`.

    Returns:
        (B, L, D) in token order.

    Raises:
        ValueError: for incompatible shapes, devices or dtypes, or orders that are not permutations.
    """
    if reduce not in REDUCE:
        raise ValueError(f"reduce={reduce!r}: give 'mean' or 'sum'")
    _check(u, delta, A, B, C, D, delta_bias)
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, order_tensor(orders, len(A), u))
    return _scan(inputs, delta_softplus, reduce, backend)[0]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """One causal scan, with the arguments and shapes of `mamba_ssm`'s `selective_scan_fn`.

    Args:
        u, delta, z: (B, D, L); the result is multiplied by silu(z).
        A: (D, N).
        B, C: (B, N, L).
        D, delta_bias: (D,).

    Returns:
        (B, D, L), and with `return_last_state` the state after the last token, (B, D, N), which is not differentiable.

    Raises:
        ValueError: for incompatible shapes, devices or dtypes.
    """
    if u.ndim != 3 or A.ndim != 2 or B.ndim != 3 or C.ndim != 3:
        raise ValueError(
            f"selective_scan takes u (B, D, L), A (D, N), B and C (B, N, L); got u {tuple(u.shape)}, "
            f"A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}"
        )
    orders = torch.arange(u.shape[2], device=u.device).unsqueeze(0)
    u_t, delta_t, B_t, C_t = (x.transpose(1, 2).unsqueeze(1) for x in (u, delta, B, C))
    A_k, D_k, bias_k = (None if x is None else x.unsqueeze(0) for x in (A, D, delta_bias))
    _check(u_t, delta_t, A_k, B_t, C_t, D_k, bias_k)
    inputs = ScanInputs(u_t, delta_t, A_k, B_t, C_t, D_k, bias_k, orders)
    y, states = _scan(inputs, delta_softplus, "mean", backend)
    y = y.transpose(1, 2)
    if z is not None:
        y = y * torch.nn.functional.silu(z)
    return (y, states[-1, :, 0].transpose(1, 2)) if return_last_state else y


def _check(u, delta, A, B, C, D, delta_bias) -> None:
    if u.ndim != 4 or A.ndim != 3 or u.shape[1] != A.shape[0] or u.shape[3] != A.shape[1]:
        raise ValueError(f"incompatible shapes: u (B, K, L, D) is {tuple(u.shape)}, A (K, D, N) {tuple(A.shape)}")
    batch, directions, length, channels = u.shape
    expected = {
        "delta": (delta, (batch, directions, length, channels)),
        "B": (B, (batch, directions, length, A.shape[2])),
        "C": (C, (batch, directions, length, A.shape[2])),
        "D": (D, (directions, channels)),
        "delta_bias": (delta_bias, (directions, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with u {tuple(u.shape)} it must be {shape}")
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, but u on {u.device}; move both to one device")
    for name, tensor in (("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a real floating-point tensor, not {tensor.dtype}")


def _scan(inputs: ScanInputs, softplus: bool, reduce: str, backend: str) -> tuple[Tensor, Tensor]:
    """y (B, L, D), and states (n, B, K, N, D), of which the last is the state after the last token."""
    backend = resolve_backend(inputs.u.device, inputs.u.dtype, backend)
    differentiable = differentiable_scan(backend)
    if differentiable is not None:
        with torch.autocast(inputs.u.device.type, enabled=False):
            y, state = differentiable.scan(inputs, softplus, reduce)
        return y, state.transpose(2, 3).unsqueeze(0)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _cross_scan(*inputs, softplus, reduce, backend, keep)


def _run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: Tensor,
    delta_softplus: bool,
    reduce: str,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D), and states (n, B, K, N, D): with `keep` those for the backward, then the final one."""
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, orders)
    return scan_kernels(backend).scan_forward(inputs, delta_softplus, reduce, keep, last=True)


def _fake(u, delta, A, B, C, D, delta_bias, orders, delta_softplus, reduce, backend, keep):
    batch, directions, length, channels = u.shape
    state_dtype = torch.promote_types(u.dtype, torch.float32)
    entries = (scan_kernels(backend).saved_states(length) if keep else 0) + 1
    states = u.new_empty(entries, batch, directions, A.shape[2], channels, dtype=state_dtype)
    return u.new_empty(batch, length, channels), states


_cross_scan = define_op("cross_scan", _run, _fake)


def _run_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: Tensor,
    delta_softplus: bool,
    reduce: str,
    backend: str,
    states: Tensor,
) -> list[Tensor]:
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, orders)
    return scan_kernels(backend).scan_backward(grad_y, inputs, delta_softplus, reduce, states, in_place=False)


def _fake_backward(grad_y, u, delta, A, B, C, D, delta_bias, orders, delta_softplus, reduce, backend, states):
    per_channel = [states.new_empty(A.shape[:2]) if x is None else torch.empty_like(x) for x in (D, delta_bias)]
    grad_u, grad_delta, grad_B, grad_C = (empty_by_direction(x, *x.shape) for x in (u, delta, B, C))
    return [grad_u, grad_delta, A.new_empty(A.shape), grad_B, grad_C, *per_channel]


_cross_scan_backward = define_op("cross_scan_backward", _run_backward, _fake_backward)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reduce, ctx.backend, _ = inputs
    _, states = output
    ctx.mark_non_differentiable(states)
    ctx.save_for_backward(*tensors, states)


def _backward(ctx, grad_y, _grad_states):
    *tensors, states = ctx.saved_tensors
    options = ctx.delta_softplus, ctx.reduce, ctx.backend
    grads = _cross_scan_backward(grad_y.contiguous(), *tensors, *options, states)
    D, delta_bias = tensors[5:7]
    grads[5] = None if D is None else grads[5]
    grads[6] = None if delta_bias is None else grads[6]
    return (*grads, None, None, None, None, None)


register_backward(_cross_scan, _setup_context, _backward)


def scan_flops(batch: int, directions: int, length: int, channels: int, state: int) -> int:
    """FLOPs of a forward scan; an exponential counts as one, a multiply-add as two.

    Per token, channel and state: delta*A and exp (2), times B (1), decay and add (2), read-out (2). Per token and
    channel: delta*u and the D skip (3).
    """
    return batch * directions * length * channels * (7 * state + 3)


@register_flop_formula(torch.ops.arm.cross_scan)
def _flops(u_shape, delta_shape, A_shape, *args, out_shape=None, **kwargs) -> int:
    return scan_flops(*u_shape, A_shape[2])


@register_flop_formula(torch.ops.arm.cross_scan_backward)
def _backward_flops(grad_shape, u_shape, delta_shape, A_shape, *args, out_shape=None, **kwargs) -> int:
    # the forward again, and about twice its work for the gradients
    return 3 * scan_flops(*u_shape, A_shape[2])
