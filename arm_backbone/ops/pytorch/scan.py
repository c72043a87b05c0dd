"""Selective scan in plain PyTorch, with a hand-written backward: any device, nothing to compile.

The scan runs in segments of 32 tokens, whose tensors fit into the cache. Exponentials, products, the read-out (a
matmul) and all gradient reductions are computed for a whole segment at once; the recurrence is one fused multiply-add
per token over all directions, channels and states. Nothing is saved per token: the backward recomputes each segment
from the state at its start.

Legend: B batch, K scan directions, L tokens, D channels, N state size, S segments, T tokens of a segment.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import empty_by_direction
from ..scan_inputs import ScanInputs, divisor

SEGMENT = 32
# States (B * K * N * D) processed together. On cores with 1 MiB of L2 cache 16k to 64k is fastest: with fewer, Python
# costs more than the arithmetic; with more, a segment no longer fits into the cache.
SLAB = 1 << 15


class _Slab(NamedTuple):
    """Inputs of the images that are processed together: at least float32, A as (K, N, D)."""

    u: Tensor
    raw_delta: Tensor  # before bias and softplus
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    orders: Tensor
    softplus: bool

    def segment(self, start: int) -> "_Segment":
        """The tokens that each direction visits at steps start to start + SEGMENT."""
        index = self.orders[:, start : start + SEGMENT]  # (K, T)
        pick = (slice(None), _directions(index), index)
        # (B, K, T, .) -> (T, B, K, .): each token is contiguous
        u, raw, B, C = (
            x[pick].permute(2, 0, 1, 3).to(self.A.dtype).contiguous() for x in (self.u, self.raw_delta, self.B, self.C)
        )
        if self.delta_bias is not None:
            raw += self.delta_bias
        delta = F.softplus(raw) if self.softplus else raw
        return _Segment(pick, u, raw, delta, B, C)


class _Segment(NamedTuple):
    pick: tuple
    u: Tensor  # (T, B, K, D)
    raw: Tensor  # (T, B, K, D), bias included
    delta: Tensor  # (T, B, K, D)
    B: Tensor  # (T, B, K, N)
    C: Tensor  # (T, B, K, N)

    def states(self, A: Tensor, first: Tensor, decay: "_Buffer", states: "_Buffer") -> None:
        """Compute the decay and the state after each token, from the state (B, K, N, D) before the first token."""
        torch.mul(self.delta.unsqueeze(3), A, out=decay.all).exp_()
        torch.mul((self.delta * self.u).unsqueeze(3), self.B.unsqueeze(4), out=states.all)
        for state, factor in zip(states.tokens, decay.tokens, strict=True):
            first = state.addcmul_(factor, first)


class _Buffer(NamedTuple):
    """A segment (T, B, K, N, D) and one view per token, made in advance: a view costs as much as a multiply-add."""

    all: Tensor
    tokens: tuple[Tensor, ...]


def _buffers(count: int, like: Tensor, length: int) -> Callable[[int], list[_Buffer]]:
    """Allocate `count` buffers, which all segments reuse.

    Args:
        like: a state (B, K, N, D).

    Returns:
        function from a segment's start to the buffers, cut to its length.
    """
    whole = like.new_empty(count, min(SEGMENT, length), *like.shape)

    @functools.cache
    def of(tokens: int) -> list[_Buffer]:
        return [_Buffer(part, part.unbind()) for part in whole[:, :tokens].unbind()]

    return lambda start: of(min(SEGMENT, length - start))


def _directions(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device).unsqueeze(1)


def _slabs(batch: int, states_per_image: int) -> list[slice]:
    size = max(1, SLAB // max(1, states_per_image))
    return [slice(b, b + size) for b in range(0, batch, size)]


def _without_autocast(function: Callable) -> Callable:
    """Decorator: disable autocast, under which matmuls of states would run in low precision."""

    @functools.wraps(function)
    def run(first: ScanInputs | Tensor, *args, **kwargs):
        device = first.u.device if isinstance(first, ScanInputs) else first.device
        with torch.autocast(device.type, enabled=False):
            return function(first, *args, **kwargs)

    return run


def _float(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def saved_states(length: int) -> int:
    """One state per segment: the state before it."""
    return (length + SEGMENT - 1) // SEGMENT


@_without_autocast
def scan_forward(
    inputs: ScanInputs, softplus: bool, reduce: str, keep: bool, last: bool, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (B, L, D), times silu(gate) if given, and states (n, B, K, N, D): with `keep` those before each segment, with
    `last` the final one."""
    u, delta, A, B, C, D, delta_bias, orders = inputs
    batch, _, length, channels = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    A_t = A.to(dtype).transpose(1, 2).contiguous()
    D, delta_bias = _float(D, dtype), _float(delta_bias, dtype)
    starts = range(0, length, SEGMENT)
    y = u.new_zeros(batch, length, channels, dtype=dtype)
    saved = u.new_zeros(len(starts) + 1 if keep else 1, batch, *A_t.shape, dtype=dtype)
    for slab in _slabs(batch, A_t.numel()):
        part = _Slab(u[slab], delta[slab], A_t, B[slab], C[slab], D, delta_bias, orders, softplus)
        buffers = _buffers(2, saved[0, slab], length)
        for s, start in enumerate(starts):
            segment = part.segment(start)
            decay, states = buffers(start)
            segment.states(A_t, saved[s if keep else 0, slab], decay, states)
            saved[s + 1 if keep else 0, slab] = states.tokens[-1]
            out = (segment.C.unsqueeze(3) @ states.all).squeeze(3)  # (T, B, K, D)
            if D is not None:
                out.addcmul_(segment.u, D)
            out = out.permute(1, 2, 0, 3).flatten(1, 2)  # (B, K * T, D)
            y[slab].index_add_(1, segment.pick[2].flatten(), out)
    y = y / divisor(inputs, reduce)
    y = y if gate is None else y * F.silu(gate.to(dtype))
    return y.to(u.dtype), saved if last else saved[:-1]


@_without_autocast
def scan_backward(
    grad_y: Tensor, inputs: ScanInputs, softplus: bool, reduce: str, states: Tensor, in_place: bool
) -> list[Tensor]:
    """Gradients of the first seven inputs, each in the dtype of its input."""
    u, delta, A, B, C, D, delta_bias, orders = inputs
    directions, length = u.shape[1:3]
    dtype = states.dtype
    A_t = A.to(dtype).transpose(1, 2).contiguous()
    D_f, bias_f = _float(D, dtype), _float(delta_bias, dtype)
    grads = [x if in_place else empty_by_direction(x, *x.shape) for x in (u, delta)]
    grads += [empty_by_direction(x, *x.shape) for x in (B, C)]
    grad_A = torch.zeros_like(A_t)
    grad_D = A_t.new_zeros(directions, u.shape[3])
    grad_bias = torch.zeros_like(grad_D)
    for slab in _slabs(len(u), A_t.numel()):
        part = _Slab(u[slab], delta[slab], A_t, B[slab], C[slab], D_f, bias_f, orders, softplus)
        incoming = (grad_y[slab].to(dtype) / divisor(inputs, reduce)).unsqueeze(1).expand(-1, directions, -1, -1)
        carry = A_t.new_zeros(len(part.u), *A_t.shape)
        buffers = _buffers(3, carry, length)
        for s in reversed(range(saved_states(length))):
            segment = part.segment(s * SEGMENT)
            before = states[s, slab]
            decay, after_token, grad_state = buffers(s * SEGMENT)
            segment.states(A_t, before, decay, after_token)
            grad_out = incoming[segment.pick].permute(2, 0, 1, 3).contiguous()  # (T, B, K, D)

            torch.mul(grad_out.unsqueeze(3), segment.C.unsqueeze(4), out=grad_state.all)
            grad_state.tokens[-1].add_(carry)
            after, *others = zip(reversed(grad_state.tokens), reversed(decay.tokens), strict=True)
            for this in others:
                this[0].addcmul_(*after)
                after = this
            torch.mul(*after, out=carry)

            # (row @ matrix) is many times faster than (matrix @ column)
            grad_C = (grad_out.unsqueeze(3) @ after_token.all.mT).squeeze(3)
            grad_B = ((segment.delta * segment.u).unsqueeze(3) @ grad_state.all.mT).squeeze(3)
            grad_product = (segment.B.unsqueeze(3) @ grad_state.all).squeeze(3)  # gradient of delta * u

            # gradient of delta * A; that of the decay is grad_state * previous state
            grad_exponent = grad_state.all.mul_(decay.all)
            grad_exponent[1:] *= after_token.all[:-1]
            grad_exponent[0] *= before
            grad_delta = torch.mul(grad_exponent, A_t, out=decay.all).sum(3).addcmul_(grad_product, segment.u)
            grad_A += grad_exponent.mul_(segment.delta.unsqueeze(3)).sum((0, 1))
            if softplus:
                grad_delta *= torch.sigmoid(segment.raw)
            grad_bias += grad_delta.sum((0, 1))
            grad_u = grad_product * segment.delta
            grad_D += (grad_out * segment.u).sum((0, 1))
            if D_f is not None:
                grad_u.addcmul_(grad_out, D_f)

            for grad, of_segment in zip(grads, (grad_u, grad_delta, grad_B, grad_C), strict=True):
                grad[slab][segment.pick] = of_segment.permute(1, 2, 0, 3).to(grad.dtype)
    grad_u, grad_delta, grad_B, grad_C = grads
    grad_A = grad_A.transpose(1, 2).to(A.dtype)
    grad_D = grad_D if D is None else grad_D.to(D.dtype)
    grad_bias = grad_bias if delta_bias is None else grad_bias.to(delta_bias.dtype)
    return [grad_u, grad_delta, grad_A.contiguous(), grad_B, grad_C, grad_D, grad_bias]
