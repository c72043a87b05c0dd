"""Selective scan in Triton: all directions in one launch, tokens indexed in scan order, nothing permuted.

A program (one warp) runs 64 channels of one direction of one image. Each thread holds the state of two channels in
registers, so a step needs neither shared memory nor other threads. Inputs are packed in words, loaded one token ahead
and unpacked at use: carrying the raw words keeps the loop from stalling on the load. If images and channels are too few
to fill the GPU, a sequence is cut into segments that run in parallel: a first pass computes the effect on the state of
each segment but the last, `_combine` the state at the start of each, and a second pass the output. The backward
recomputes each chunk from its saved state and stores the state before each group of tokens; a group's decays and states
stay in registers. Sums over channels are computed by exchanges between threads, each of which halves the number of
values per thread. There are no atomics, so results are deterministic.

This file holds the host code; the kernels are in `scan_forward`, `scan_backward` and `recurrence`.

Legend: B batch, K scan directions, L tokens, D channels, N state size, S segments.
"""

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..layout import as_rows, by_direction, is_shared
from ..scan_inputs import ScanInputs, divisor
from .device import check_grid, device_guard
from .gate import gate_forward
from .recurrence import CHANNELS, CHUNK, GROUP
from .scan_backward import TOKENS, _backward, _reverse, _sum_blocks
from .scan_forward import _combine, _forward

PROGRAMS = 4096  # number aimed at; with fewer, sequences are cut into segments
FEWEST = 3  # segments in the forward; with two, its two passes together take as many steps as one over all tokens
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def saved_states(length: int) -> int:
    """One state between every two chunks."""
    return max(0, triton.cdiv(length, CHUNK) - 1)


def _padded(x: Tensor, more: int) -> Tensor:
    """x with zeros appended to the last axis."""
    return F.pad(x, (0, more)) if more else x


class _Packed:
    """Inputs as the kernels read them (tokens in one dtype, packed in words; parameters in float32) and launch sizes.

    Channels are padded with zeros to whole pairs, states to whole 64-bit words of B and C. A sequence is cut into at
    least `fewest` segments, or not at all.
    """

    def __init__(self, inputs: ScanInputs, softplus: bool, reduce: str, fewest: int = 2) -> None:
        u, delta, A, B, C, D, delta_bias, orders = inputs
        self.batch, self.directions, self.length, self.channels = u.shape
        if self.length * max(self.channels, A.shape[2]) >= 2**31:
            raise ValueError(
                f"u {tuple(u.shape)} has 2^31 or more numbers per image, too many for Triton; use the back end 'torch'"
            )
        self.dtype = functools.reduce(torch.promote_types, (delta.dtype, B.dtype, C.dtype), u.dtype)
        pack = 8 // self.dtype.itemsize
        shared = is_shared(u)
        u = u[:, :1] if shared else u
        self.u, self.delta = (self.pairs(by_direction(x)) for x in (u, delta))
        unused = -A.shape[2] % pack
        (self.B, step_B), (self.C, step_C) = (self.words(x.transpose(0, 1), unused) for x in (B, C))
        if self.length * max(step_B, step_C) >= 2**31:  # the kernels' indices have 32 bits
            (self.B, step_B), (self.C, step_C) = (self.words(x.transpose(0, 1).contiguous(), unused) for x in (B, C))
        self.steps = step_B, step_C
        self.A = _padded(A.float(), unused).transpose(1, 2).contiguous()
        self.D, self.bias = (None if x is None else x.float().contiguous() for x in (D, delta_bias))
        self.orders = orders.contiguous()
        check_grid(self.batch * self.directions)
        self.rows, self.states = self.batch * self.directions, A.shape[2] + unused
        self.packed = dict(PACK=pack, TYPE=TYPES[self.dtype])
        self.flags = dict(SOFTPLUS=softplus, HAS_BIAS=delta_bias is not None)
        self.shared = shared
        self.divisor = divisor(inputs, reduce)
        blocks = triton.cdiv(self.channels, CHANNELS.value)
        chunks = triton.cdiv(self.length, CHUNK)
        wanted = min(chunks, max(1, PROGRAMS // max(1, self.rows * blocks)))
        self.segment_length = triton.cdiv(chunks, wanted) * CHUNK
        self.segments = max(1, triton.cdiv(self.length, self.segment_length))
        if self.segments < fewest:
            self.segment_length, self.segments = self.length, 1
        self.grid = blocks, self.rows, self.segments
        self.effects = blocks, self.rows, self.segments - 1  # nothing follows the last segment

    def pairs(self, x: Tensor) -> Tensor:
        """Contiguous (..., D) as words of two channels."""
        word = torch.int64 if self.dtype == torch.float32 else torch.int32
        x = _padded(x.to(self.dtype), x.shape[-1] % 2)
        return (x.clone() if x.data_ptr() % word.itemsize else x).view(word)

    def words(self, x: Tensor, unused: int) -> tuple[Tensor, int]:
        """(K, B, L, N) as 64-bit words, and the row stride in words."""
        x, step = as_rows(_padded(x.to(self.dtype), unused))
        size = 8 // self.dtype.itemsize
        if step % size or x.data_ptr() % 8:
            x, step = x.contiguous(), x.shape[-1]
        return x.view(torch.int64), step // size

    def sizes(self) -> tuple[int, ...]:
        pairs = self.delta.shape[-1]
        return self.directions, self.length, self.channels, pairs, self.rows, self.segment_length, *self.steps

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.u.device)

    def tokens(self, dtype: torch.dtype) -> Tensor:
        """(K, B, L, D)"""
        shape = self.directions, self.batch, self.length, self.channels
        return torch.empty(shape, dtype=dtype, device=self.u.device)

    def tiles(self, count: int) -> Tensor:
        """(count, B, K, N, D)"""
        return self.empty(count, self.batch, self.directions, self.states, self.channels)

    def run(self, kernel, grid: tuple[int, int, int], *arguments, **constants) -> None:
        if all(grid):
            kernel[grid](*arguments, N=self.states, **constants, num_warps=1)


@device_guard
def scan_forward(
    inputs: ScanInputs, softplus: bool, reduce: str, keep: bool, last: bool, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (B, L, D), times silu(gate) if given, and states (n, B, K, N, D): with `keep` those between chunks, with `last`
    the final one."""
    i = _Packed(inputs, softplus, reduce, FEWEST)
    used = inputs.A.shape[2]
    y = i.tokens(inputs.u.dtype)
    saved = i.tiles((saved_states(i.length) if keep else 0) + last)
    cut = i.segments > 1
    local, sums, starts = (
        (i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels), i.tiles(i.segments)) if cut else (None,) * 3
    )
    registers = _registers(i.states, 168 if keep or cut else 128)

    def run(only_state: bool) -> None:
        tensors = (i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, starts, y, saved, local, sums)
        constants = dict(HAS_D=i.D is not None, HAS_STARTS=cut and not only_state, ONLY_STATE=only_state, LAST=last)
        constants |= dict(KEEP=keep and not only_state, CHUNK=CHUNK, SHARED_U=i.shared, **i.packed, **i.flags)
        i.run(_forward, i.effects if only_state else i.grid, *tensors, *i.sizes(), **constants, **registers)

    if cut:
        run(only_state=True)
        _combine_segments(i, local, sums, starts, reverse=False)
    run(only_state=False)
    y = y.mean(0) if reduce == "mean" else y.sum(0)
    y = y if gate is None else gate_forward(y, gate)
    return y, saved if i.states == used else saved[:, :, :, :used].contiguous()


def _registers(states: int, most: int) -> dict[str, int]:
    """Register limit that raises occupancy (measured on an H200, up to 16 states)."""
    return {} if torch.version.hip or states > 16 else dict(maxnreg=most)


def _programs_at_once(device: torch.device) -> int:
    """Number of backward programs that fill a GPU; each takes all registers that a thread may have.

    3 in the interpreter, so that its tests cover several launches.
    """
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _combine_segments(i: _Packed, local: Tensor, sums: Tensor, starts: Tensor, reverse: bool) -> None:
    """Compute the state that each segment starts from."""
    sizes = (i.directions, i.channels, i.rows, i.segments)
    i.run(_combine, (*i.grid[:2], i.states), i.A, local, sums, starts, *sizes, REVERSE=reverse)


@device_guard
def scan_backward(
    grad_y: Tensor, inputs: ScanInputs, softplus: bool, reduce: str, states: Tensor, in_place: bool
) -> list[Tensor]:
    """Gradients of the first seven inputs, each in the dtype of its input."""
    u, delta, A, B, C, D, _, _ = inputs
    i = _Packed(inputs, softplus, reduce)
    used = A.shape[2]
    states = F.pad(states, (0, 0, 0, i.states - used)) if used < i.states else states
    dy = i.pairs(grad_y.contiguous())
    carried = None
    if i.segments > 1:
        local, carried, steps = i.tiles(i.segments), i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels)
        tensors = (dy, i.delta, i.A, i.C, i.bias, i.orders, local, steps)
        i.run(_reverse, i.effects, *tensors, *i.sizes(), i.divisor, **i.packed, **i.flags)
        _combine_segments(i, local, steps, carried, reverse=True)
        del local, steps
    grad_u, grad_delta = (x.transpose(0, 1) if in_place else i.tokens(x.dtype) for x in (u, delta))
    grad_B, grad_C = (x.new_empty(i.directions, i.batch, i.length, used) for x in (B, C))
    totals = i.empty(i.segments, i.batch, i.states + 2, i.directions, i.channels)
    constants = dict(CHUNK=CHUNK, GROUP=GROUP, HAS_D=D is not None, HAS_CARRIED=carried is not None, SHARED_U=i.shared)
    # launch only as many programs at a time as fill the GPU, because each needs its own `group_states`
    blocks, parts = i.grid[0], i.rows * i.segments
    together = min(parts, max(1, _programs_at_once(u.device) // max(1, blocks)))
    group_states = i.empty(blocks * together, CHUNK // GROUP, i.states, CHANNELS.value)
    partial = i.empty(2, blocks, together, i.segment_length, i.states)
    tensors = (dy, i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, states, carried, group_states)
    for done in range(0, parts, max(1, together)):
        now = min(together, parts - done)
        arguments = (*tensors, grad_u, grad_delta, totals, partial, *i.sizes(), i.divisor, done)
        i.run(_backward, (blocks, now, 1), *arguments, **constants, **i.packed, **i.flags)
        sizes = (i.directions, i.length, i.rows, i.segment_length, blocks, used, done)
        grid = (now, triton.cdiv(i.segment_length, TOKENS), 1)
        width = triton.next_power_of_2(used)
        i.run(_sum_blocks, grid, partial, i.orders, grad_C, grad_B, *sizes, WIDTH=width, TOKENS=TOKENS)
    totals = totals.sum((0, 1))
    grad_A, grad_D, grad_bias = totals[:used].permute(1, 2, 0), totals[-2], totals[-1]
    if not in_place:  # results of an operator must not share memory
        grad_A, grad_D = grad_A.clone(memory_format=torch.contiguous_format), grad_D.clone()
    grad_u, grad_delta, grad_B, grad_C = (x.transpose(0, 1) for x in (grad_u, grad_delta, grad_B, grad_C))
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias)
    dtypes = [torch.float32 if x is None else x.dtype for x in inputs[:7]]
    return [grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]
