"""The inside of a mixer, between in_proj and out_proj (ARM section 3.3): convolution, projections and scan.

Legend: B batch, K scan directions, L tokens, D channels, N state size, R rank of delta, W convolution taps.
"""

import torch
from torch import Tensor

from .checks import check_positive, check_real, check_tensors
from .conv import cross_conv
from .dispatch import ConvKernels, ScanKernels, direct_inner
from .gate import silu_gate
from .library import cast_together, compute_dtype, needs_grad, no_double_backward
from .orders import ScanOrders, are_per_image, image_orders, order_tensor
from .per_image import outputs_by_direction, reduced
from .scan import cross_scan
from .scan_inputs import ScanInputs


def mamba_inner(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A_log: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    orders: ScanOrders | Tensor,
    gate: Tensor | None = None,
) -> Tensor:
    """Causal convolution, the projections to delta, B and C, and the selective scan, along K scan orders.

    With kernels this is one autograd function: it saves x, the projections' output and the chunk states, recomputes the
    rest, and writes the gradients of the scan's inputs over the inputs.

    Args:
        x: (B, L, D), in token order.
        conv_weight: (K, D, W), as in `cross_conv`.
        conv_bias: (K, D).
        x_proj_weight: (K, R + 2 N, D).
        dt_proj_weight: (K, D, R).
        A_log: (K, D, N); the scan's A is -exp(A_log).
        D, delta_bias: (K, D).
        orders: (K, L) or (B, K, L), as in `cross_scan`.
        gate: (B, L, D); the result is multiplied by its SiLU, in the scan's own pass if nothing needs gradients. In
            training `gated_linear` keeps less for its backward.

    Returns:
        (B, L, D) in token order: the mean over the directions.

    Raises:
        ValueError: for incompatible shapes, devices or dtypes, or orders that are not permutations.
        NotImplementedError: for forward-mode and torch.func derivatives with a back end of kernels.
    """
    tensors = (x, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A_log, D, delta_bias)
    _check(*tensors, gate)
    if are_per_image(orders):
        y = _per_image(x, tensors[1:], image_orders(orders, len(conv_weight), x))
        return y if gate is None else silu_gate(y, gate)
    orders = order_tensor(orders, len(conv_weight), x)
    dtype = compute_dtype(x)
    whole = A_log.shape[2] > 0  # kernels are for whole vectors of states
    taps = conv_weight.shape[2]
    kernels = direct_inner(*tensors, gate, taps=taps, dtype=dtype) if x.dtype == dtype and whole else None
    if kernels is not None and not needs_grad(*tensors, gate) and (gate is None or gate.dtype == x.dtype):
        return _forward(*tensors, orders, kernels, keep=False, gate=gate)[0]
    y = _composed(*tensors, orders) if kernels is None else _MambaInner.apply(*tensors, orders, kernels)
    return y if gate is None else silu_gate(y, gate)


def _composed(x, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A_log, D, delta_bias, orders) -> Tensor:
    """`mamba_inner` by its operators, for orders (K, L)."""
    orders = ScanOrders.trusted(orders)
    u = cross_conv(x, conv_weight, conv_bias, orders)
    projected = _direction_rows(u) @ x_proj_weight.transpose(1, 2)
    delta, B, C = _scan_inputs(projected, dt_proj_weight, A_log.shape[2], u.shape)
    A = -torch.exp(A_log.float() if A_log.dtype.itemsize < 4 else A_log)
    return cross_scan(u, delta, A, B, C, D, delta_bias, orders)


def _per_image(x: Tensor, weights: tuple[Tensor, ...], orders: Tensor) -> Tensor:
    """`mamba_inner` for permutations (B, K, L)."""

    def run(k, move, steps):
        return mamba_inner(move(x), *(weight[k : k + 1] for weight in weights), ScanOrders.trusted(steps))

    return reduced(outputs_by_direction(orders, run), "mean", orders.shape[1])


def uses_fused_inner(x: Tensor) -> bool:
    """Whether, for tokens like x, `mamba_inner` runs as one autograd function, which saves little for its backward."""
    return direct_inner(x, taps=1, dtype=compute_dtype(x)) is not None


def _check(x, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A_log, D, delta_bias, gate) -> None:
    tensors = dict(x=x, conv_weight=conv_weight, dt_proj_weight=dt_proj_weight, A_log=A_log)
    for name, tensor in tensors.items():
        check_real(name, tensor)
        if tensor.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must have 3 dimensions")
    directions, channels, taps = conv_weight.shape
    rank, states = dt_proj_weight.shape[2], A_log.shape[2]
    each = (directions, channels)
    shapes = {
        "x": (x, (*x.shape[:2], channels)),
        "conv_weight": (conv_weight, conv_weight.shape),
        "conv_bias": (conv_bias, each),
        "x_proj_weight": (x_proj_weight, (directions, rank + 2 * states, channels)),
        "dt_proj_weight": (dt_proj_weight, (*each, rank)),
        "A_log": (A_log, (*each, states)),
        "D": (D, each),
        "delta_bias": (delta_bias, each),
        "gate": (gate, x.shape),
    }
    check_tensors(shapes, ("x", "conv_weight"))
    check_positive(directions=directions, taps=taps)


def _direction_rows(tokens: Tensor) -> Tensor:
    """(B, K, L, C) -> (K, B L, C): all tokens of a direction as one matrix, for one matmul per direction."""
    return tokens.transpose(0, 1).flatten(1, 2)


def _scan_inputs(projected: Tensor, dt_proj_weight: Tensor, states: int, shape: torch.Size) -> tuple[Tensor, ...]:
    """delta (B, K, L, D), B and C (B, K, L, N) from the projection's output (K, B L, R + 2 N)."""
    delta, B, C = projected.split([dt_proj_weight.shape[2], states, states], dim=-1)
    delta = delta @ dt_proj_weight.transpose(1, 2)
    return tuple(t.unflatten(1, (shape[0], shape[2])).transpose(0, 1) for t in (delta, B, C))


Kernels = tuple[ConvKernels, ScanKernels]


def _forward(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A_log: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    orders: Tensor,
    kernels: Kernels,
    keep: bool,
    gate: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The result, and for the backward the projection's output, the chunk states, two weights and A."""
    conv, scan = kernels
    x_proj, dt_proj = cast_together([x_proj_weight, dt_proj_weight], x.dtype)
    directions, channels, states = A_log.shape
    A = torch.empty(directions, states, channels, device=x.device, dtype=torch.float32)  # the kernels' layout
    A = torch.exp(A_log.transpose(1, 2).float(), out=A).neg_().transpose(1, 2)
    u = conv.conv_forward(x, conv_weight, conv_bias, orders)
    projected = _direction_rows(u) @ x_proj.transpose(1, 2)
    delta, B, C = _scan_inputs(projected, dt_proj, states, u.shape)
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, orders)
    y, saved = scan.scan_forward(inputs, True, "mean", keep, last=False, gate=gate)
    return y, projected, saved, x_proj, dt_proj, A


class _MambaInner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A_log, D, delta_bias, orders, kernels):
        weights = (conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A_log, D, delta_bias)
        y, *saved = _forward(x, *weights, orders, kernels, keep=True)
        ctx.kernels = kernels
        ctx.dtypes = [tensor.dtype for tensor in (x, *weights)]
        ctx.save_for_backward(x, conv_weight, conv_bias, *saved, D, delta_bias, orders)
        return y

    @staticmethod
    @no_double_backward
    def backward(ctx, grad_y):
        with torch.autocast(grad_y.device.type, enabled=False):
            grads = _backward(grad_y, *ctx.saved_tensors, ctx.kernels)
            grads[3:5] = cast_together(grads[3:5], ctx.dtypes[3])
        return (*(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)), None, None)


def _backward(
    grad_y, x, conv_weight, conv_bias, projected, states, x_proj, dt_proj, A, D, delta_bias, orders, kernels
) -> list[Tensor]:
    """Gradients of `mamba_inner`'s arguments."""
    conv, scan = kernels
    u = conv.conv_forward(x, conv_weight, conv_bias, orders)
    delta, B, C = _scan_inputs(projected, dt_proj, A.shape[2], u.shape)
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, orders)
    grads = scan.scan_backward(grad_y, inputs, True, "mean", states, in_place=True)
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias = grads
    grad_delta, grad_B, grad_C = (_direction_rows(grad) for grad in (grad_delta, grad_B, grad_C))
    grad_dt_proj = grad_delta.mT @ projected[..., : dt_proj.shape[2]]
    grad_projected = torch.cat([grad_delta @ dt_proj, grad_B, grad_C], dim=-1)
    del inputs, grads, delta, grad_delta, u
    u = conv.conv_forward(x, conv_weight, conv_bias, orders)  # the first u was overwritten by its gradient
    grad_x_proj = grad_projected.mT @ _direction_rows(u)
    del u
    _direction_rows(grad_u).baddbmm_(grad_projected, x_proj)
    grad_x, grad_conv_weight, grad_conv_bias = conv.conv_backward(grad_u, x, conv_weight, conv_bias, orders)
    grad_A_log = torch.mul(grad_A, A, out=torch.empty_like(A, memory_format=torch.contiguous_format))
    return [grad_x, grad_conv_weight, grad_conv_bias, grad_x_proj, grad_dt_proj, grad_A_log, grad_D, grad_bias]
