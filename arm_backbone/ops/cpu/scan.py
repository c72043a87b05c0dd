"""Selective scan on a CPU: calls of the compiled kernels.

Legend: B batch, K scan directions, L tokens, D channels, N state size, S segments.
"""

import torch
from torch import Tensor

from ..layout import as_rows, by_direction, is_shared, is_tokens_last
from ..scan_inputs import ScanInputs, divisor
from .library import (
    Scan,
    ScanBackward,
    ScanForward,
    call,
    checked_orders,
    empty,
    pointer,
    scan_parts,
    segment_length,
    sum_parts,
    to_float,
)


class _Packed:
    """Inputs in the kernels' layout, kept alive while the kernels read them.

    Tensors become float32, except u and delta, which are bfloat16 with `half`, and B and C if both are bfloat16. With
    `tokens_last` (see `_lies_tokens_last`) they stay where they are, and the kernel transposes blocks.
    """

    def __init__(self, inputs: ScanInputs, softplus: bool, reduce: str, half: bool, tokens_last: bool = False) -> None:
        u, delta, A, B, C, D, delta_bias, orders = inputs
        shared = is_shared(u)
        u, self.delta = (x if half else x.to(torch.float32) for x in (u[:, :1] if shared else u, delta))
        half_BC = B.dtype == C.dtype == torch.bfloat16
        self.B, self.C = (x if half_BC else x.to(torch.float32) for x in (B, C))
        if tokens_last:
            self.u, row_B, row_C = u, 0, 0
        else:
            self.u, self.delta = by_direction(u), by_direction(self.delta)
            (self.B, row_B), (self.C, row_C) = (as_rows(x.transpose(0, 1)) for x in (self.B, self.C))
        self.A = A.to(torch.float32).transpose(1, 2).contiguous()
        self.D, self.delta_bias, self.orders = to_float(D), to_float(delta_bias), checked_orders(orders)
        batch, directions, length, channels = delta.shape
        self.states = (batch, directions, A.shape[2], channels)
        tensors = (self.u, self.delta, self.A, self.B, self.C, self.D, self.delta_bias, self.orders)
        flags = (int(tokens_last), int(softplus), divisor(inputs, reduce), int(shared), int(half), int(half_BC))
        sizes = (batch, directions, length, channels, A.shape[2])
        self.scan = Scan(*sizes, *flags, row_B, row_C, *(pointer(x) for x in tensors))


def _lies_tokens_last(inputs: ScanInputs) -> bool:
    """Whether one direction visits tokens as they lie, in mamba-ssm's layout (B, D, L) and (B, N, L)."""
    orders = inputs.orders
    if len(orders) > 1 or not all(is_tokens_last(x) for x in (inputs.u, inputs.delta, inputs.B, inputs.C)):
        return False
    return not inputs.u.is_contiguous() and torch.equal(orders[0], torch.arange(orders.shape[1], device=orders.device))


def saved_states(length: int) -> int:
    """One state per segment: the state before it."""
    return -(-length // segment_length())


def scan_forward(
    inputs: ScanInputs, softplus: bool, reduce: str, keep: bool, last: bool, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (B, L, D), times silu(gate) if given, and states (n, B, K, N, D): with `keep` those before each segment, with
    `last` the final one."""
    u, delta = inputs.u, inputs.delta
    half = u.dtype == delta.dtype == torch.bfloat16
    packed = _Packed(inputs, softplus, reduce, half, _lies_tokens_last(inputs))
    batch, _, length, channels = u.shape
    y = empty(batch, length, channels, dtype=packed.u.dtype)
    states = empty(saved_states(length) + 1 if keep else 1, *packed.states)  # the kernels always write the final one
    gate, row_gate = (None, 0) if gate is None else as_rows(gate)
    call("scan_forward", ScanForward(packed.scan, y.data_ptr(), states.data_ptr(), int(keep), pointer(gate), row_gate))
    return y.to(u.dtype), states if last else states[:-1]


def scan_backward(
    grad_y: Tensor, inputs: ScanInputs, softplus: bool, reduce: str, states: Tensor, in_place: bool
) -> list[Tensor]:
    """Gradients of the first seven inputs, each in the dtype of its input."""
    u, delta, _, B, *_ = inputs
    half = u.dtype == delta.dtype == grad_y.dtype == torch.bfloat16
    packed = _Packed(inputs, softplus, reduce, half)
    batch, directions, length, channels = u.shape
    grad_y = grad_y.contiguous() if half else to_float(grad_y)
    parts = scan_parts(batch * directions, channels)
    if in_place:
        grad_u, grad_delta = packed.u, packed.delta
    else:
        grad_u, grad_delta = (torch.empty_like(packed.delta) for _ in range(2))
    grad_B, grad_C = (empty(parts, directions, batch, *B.shape[2:]) for _ in range(2))
    grad_A = empty(batch, *packed.A.shape)
    grad_D, grad_bias = (empty(batch, directions, channels) for _ in range(2))
    results = (grad_u, grad_delta, grad_B, grad_C, grad_A, grad_D, grad_bias)
    call("scan_backward", ScanBackward(packed.scan, *(x.data_ptr() for x in (grad_y, states, *results)), parts))
    dtypes = [u.dtype if x is None else x.dtype for x in inputs[:7]]
    grad_A, grad_B, grad_C, grad_D, grad_bias = (sum_parts(x) for x in (grad_A, grad_B, grad_C, grad_D, grad_bias))
    grad_u, grad_delta, grad_B, grad_C = (x.transpose(0, 1) for x in (grad_u, grad_delta, grad_B, grad_C))
    grads = (grad_u, grad_delta, grad_A.transpose(1, 2).contiguous(), grad_B, grad_C, grad_D, grad_bias)
    return [grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]
