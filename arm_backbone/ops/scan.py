"""Selective scan (Mamba-1) over several token orders: the public function and the registered operator.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .checks import check_positive, check_real, check_tensors
from .dispatch import differentiable_scan, plain_functions, resolve_backend, scan_kernels
from .layout import contiguous, empty_by_direction
from .library import define_op, needs_grad, register_backward, without_autocast
from .orders import ScanOrders, are_per_image, check_fit, image_orders, order_tensor
from .per_image import outputs_by_direction, reduced
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
        orders: (K, L), or (B, K, L) if images differ; `orders[k, t]` is the token that direction k visits at step t. A
            plain int64 tensor is validated at each call, `ScanOrders` only once, on construction. With orders per image
            each direction is a scan of its own, and its tokens are moved before and after.
        delta_softplus: apply softplus to delta (after the bias).
        reduce: "mean" or "sum", over the directions.
        backend: see `resolve_backend`.

    Returns:
        (B, L, D) in token order.

    Raises:
        ValueError: for incompatible shapes, devices or dtypes, or orders that are not permutations.
        NotImplementedError: for forward-mode and torch.func derivatives with a back end of kernels.
    """
    if reduce not in REDUCE:
        raise ValueError(f"reduce={reduce!r}: give 'mean' or 'sum'")
    if are_per_image(orders):
        return _per_image(u, delta, A, B, C, D, delta_bias, orders, delta_softplus, reduce, backend)
    return scan_with_state(u, delta, A, B, C, D, delta_bias, orders, delta_softplus, reduce, backend)[0]


def _per_image(u, delta, A, B, C, D, delta_bias, orders, delta_softplus, reduce, backend) -> Tensor:
    """`cross_scan` for orders (B, K, L)."""
    _check(u, delta, A, B, C, D, delta_bias)

    def run(k, move, steps):
        u_k, delta_k, B_k, C_k = (move(x[:, k]).unsqueeze(1) for x in (u, delta, B, C))
        A_k, D_k, bias_k = (None if x is None else x[k : k + 1] for x in (A, D, delta_bias))
        order = ScanOrders.trusted(steps)
        return scan_with_state(u_k, delta_k, A_k, B_k, C_k, D_k, bias_k, order, delta_softplus, "sum", backend)[0]

    return reduced(outputs_by_direction(image_orders(orders, len(A), u), run), reduce, len(A))


def scan_with_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: ScanOrders | Tensor,
    delta_softplus: bool,
    reduce: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`cross_scan`, and states (n, B, K, N, D), of which the last is the state after the last token."""
    _check(u, delta, A, B, C, D, delta_bias)
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, order_tensor(orders, len(A), u))
    backend = resolve_backend(u.device, u.dtype, backend)
    differentiable = plain_functions(u, delta, A, B, C, D, delta_bias, backend=backend) or differentiable_scan(backend)
    if differentiable is not None:
        with without_autocast(u.device.type):
            y, state = differentiable.scan(inputs, delta_softplus, reduce)
        return y, state.transpose(2, 3).unsqueeze(0)
    if 0 in A.shape:  # kernels are for whole vectors of channels and states
        backend = "torch"
    keep = needs_grad(*inputs) or torch.jit.is_tracing()  # a traced program may be trained, whatever traced it
    if torch.compiler.is_exporting() and not keep:
        backend = "auto"  # the fastest where the program will run
    return _cross_scan(*inputs, delta_softplus, reduce, backend, keep)


def _check(u, delta, A, B, C, D, delta_bias) -> None:
    check_real("u", u)
    check_real("A", A)
    tokens, parameters = u.shape, A.shape
    if len(tokens) != 4 or len(parameters) != 3 or tokens[1] != parameters[0] or tokens[3] != parameters[1]:
        raise ValueError(f"incompatible shapes: u (B, K, L, D) is {tuple(tokens)}, A (K, D, N) {tuple(parameters)}")
    per_state, per_channel = (*tokens[:3], parameters[2]), parameters[:2]
    shapes = {
        "u": (u, tokens),
        "delta": (delta, tokens),
        "A": (A, parameters),
        "B": (B, per_state),
        "C": (C, per_state),
        "D": (D, per_channel),
        "delta_bias": (delta_bias, per_channel),
    }
    check_tensors(shapes, ("u",))
    check_positive(directions=tokens[1])


def _fits(u, delta, A, B, C, D, delta_bias) -> bool:
    """Whether the shapes are those that `_check` wants, faster."""
    per_state, per_channel = (*u.shape[:3], A.shape[-1]), A.shape[:2]
    vectors = all(x is None or x.shape == per_channel for x in (D, delta_bias))
    return (
        (u.ndim, A.ndim) == (4, 3)
        and u.shape == delta.shape
        and u.shape[1::2] == per_channel
        and B.shape == C.shape == per_state
        and vectors
    )


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
    if not _fits(u, delta, A, B, C, D, delta_bias):  # in a traced program nobody has checked
        _check(u, delta, A, B, C, D, delta_bias)
    check_fit(orders, len(A), u)
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, orders)
    if backend == "auto":
        backend = resolve_backend(u.device, u.dtype)
        differentiable = differentiable_scan(backend)
        if differentiable is not None:
            y, state = differentiable.scan(inputs, delta_softplus, reduce)
            return y, state.transpose(2, 3).unsqueeze(0)
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
    return scan_kernels(backend).scan_backward(
        contiguous(grad_y), inputs, delta_softplus, reduce, states, in_place=False
    )


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
    grads = _cross_scan_backward(grad_y, *tensors, *options, states)
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
