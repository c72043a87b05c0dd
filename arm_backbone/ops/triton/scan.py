"""Selective scan in Triton: all directions in one launch, tokens read in each order by index, nothing permuted.

A program, one warp, runs 64 channels of one direction of one image, every thread with the whole state of two channels
in registers, so that a step needs neither shared memory nor other threads. Inputs are read as words of several numbers
and unpacked when they are needed, a token ahead: what a loop carries is what was loaded, or it would wait for it. Where
images and channels are too few to fill the GPU, a sequence is cut into segments that run in parallel: a first pass
finds each segment's effect on the state, and the starts are put together before the second. The backward runs each
chunk again from its saved state and notes the state before each group of tokens; a group's decays and states then stay
in registers, one state after the other. Sums over channels go from thread to thread, halving what each holds with
every exchange. Nothing is added up by atomics: results are deterministic.

Legend: B batch, K scan directions, L tokens, D channels, N state size, S segments.
"""

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..layout import by_direction, rows
from .device import on_its_device
from .recurrence import CHANNELS, CHUNK, GROUP
from .scan_backward import TOKENS, _backward, _reverse, _sum_blocks
from .scan_forward import _combine, _forward

PROGRAMS = 4096  # wanted; below, sequences are cut into segments
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _filled(x: Tensor, more: int) -> Tensor:
    """The last axis longer by some zeros."""
    return F.pad(x, (0, more)) if more else x


class _Inputs:
    """Inputs of one type, as words, parameters in float32, and what every kernel is launched with.

    Channels are filled up to whole pairs, states to whole 64-bit words of B and C, with some that stay 0.
    """

    def __init__(self, u, delta, A, B, C, D, delta_bias, orders, delta_softplus) -> None:
        self.batch, self.directions, self.length, self.channels = u.shape
        if self.length * max(self.channels, A.shape[2]) >= 2**31:
            raise ValueError(f"backend='triton' scans up to 2^31 numbers of an image; u is {tuple(u.shape)}")
        self.dtype = functools.reduce(torch.promote_types, (delta.dtype, B.dtype, C.dtype), u.dtype)
        pack = 8 // self.dtype.itemsize
        self.u, self.delta = (self.pairs(by_direction(x)) for x in (u, delta))
        unused = -A.shape[2] % pack
        (self.B, step_B), (self.C, step_C) = (self.words(x.transpose(0, 1), unused) for x in (B, C))
        self.steps = step_B, step_C
        self.A = _filled(A.float(), unused).transpose(1, 2).contiguous()
        self.D, self.bias = (None if x is None else x.float().contiguous() for x in (D, delta_bias))
        self.orders = orders.contiguous()
        self.rows, self.states = self.batch * self.directions, A.shape[2] + unused
        self.packed = dict(PACK=pack, TYPE=TYPES[self.dtype])
        self.flags = dict(SOFTPLUS=delta_softplus, HAS_BIAS=delta_bias is not None)
        blocks = triton.cdiv(self.channels, CHANNELS.value)
        chunks = triton.cdiv(self.length, CHUNK)
        wanted = min(chunks, max(1, PROGRAMS // max(1, self.rows * blocks)))
        self.segment_length = triton.cdiv(chunks, wanted) * CHUNK
        self.segments = max(1, triton.cdiv(self.length, self.segment_length))
        self.grid = blocks, self.rows, self.segments

    def pairs(self, x: Tensor) -> Tensor:
        """Contiguous (..., D) as words of two channels."""
        word = torch.int64 if self.dtype == torch.float32 else torch.int32
        return _filled(x.to(self.dtype), x.shape[-1] % 2).view(word)

    def words(self, x: Tensor, unused: int) -> tuple[Tensor, int]:
        """(K, B, L, N) as words of 64 bits, and the step from any token to the next."""
        x, step = rows(_filled(x.to(self.dtype), unused))
        size = 8 // self.dtype.itemsize
        if step % size or x.data_ptr() % 8:
            x, step = x.contiguous(), x.shape[-1]
        return x.view(torch.int64), step // size

    def sizes(self) -> tuple[int, ...]:
        pairs = self.u.shape[-1]
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


@on_its_device
def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    orders: Tensor,
    delta_softplus: bool,
    keep: bool,
    last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Arguments as `arm_backbone.ops.cross_scan`.

    Returns:
        y (B, L, D), and states (., B, K, N, D): with `keep` those between chunks, with `last` that after the end.
    """
    i = _Inputs(u, delta, A, B, C, D, delta_bias, orders, delta_softplus)
    y = i.tokens(u.dtype)
    saved = i.tiles((saved_states(i.length) - 1 if keep else 0) + last)
    cut = i.segments > 1
    local, sums, starts = (
        (i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels), i.tiles(i.segments)) if cut else (None,) * 3
    )

    registers = _registers(i.states, 168 if keep or cut else 128)

    def run(only_state: bool) -> None:
        tensors = (i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, starts, y, saved, local, sums)
        constants = dict(HAS_D=D is not None, HAS_STARTS=cut and not only_state, ONLY_STATE=only_state, LAST=last)
        constants |= dict(KEEP=keep and not only_state, CHUNK=CHUNK, **i.packed, **i.flags)
        i.run(_forward, i.grid, *tensors, *i.sizes(), **constants, **registers)

    if cut:
        run(only_state=True)
        _put_together(i, local, sums, starts, reverse=False)
    run(only_state=False)
    return y.mean(0), saved if i.states == A.shape[2] else saved[:, :, :, : A.shape[2]].contiguous()


def saved_states(length: int) -> int:
    """Chunks of a sequence, and the states that its forward saves: the one after each."""
    return max(1, triton.cdiv(length, CHUNK))


def _registers(states: int, most: int) -> dict[str, int]:
    """So few registers a thread that more programs hide each other's waiting (measured on an H200, up to 16 states)."""
    return {} if torch.version.hip or states > 16 else dict(maxnreg=most)


def _programs_at_once(device: torch.device) -> int:
    """Programs of the backward for every place of a GPU; they take all registers that a thread may have.

    In the interpreter a few, so that it too has several launches.
    """
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _put_together(i: _Inputs, local: Tensor, sums: Tensor, starts: Tensor, reverse: bool) -> None:
    sizes = (i.directions, i.channels, i.rows, i.segments)
    i.run(_combine, (*i.grid[:2], i.states), i.A, local, sums, starts, *sizes, REVERSE=reverse)


@on_its_device
def scan_backward(
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
    saved: Tensor,
    in_place: bool = False,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D and delta_bias, each in its tensor's type; D's and the bias's always made.

    Args:
        in_place: write the gradients of u and delta over them; they must lie direction by direction.
    """
    i = _Inputs(u, delta, A, B, C, D, delta_bias, orders, delta_softplus)
    used = A.shape[2]
    saved = F.pad(saved, (0, 0, 0, i.states - used)) if used < i.states else saved
    dy = i.pairs(grad_y.contiguous())
    carried = None
    if i.segments > 1:
        local, carried, steps = i.tiles(i.segments), i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels)
        tensors = (dy, i.delta, i.A, i.C, i.bias, i.orders, local, steps)
        i.run(_reverse, i.grid, *tensors, *i.sizes(), **i.packed, **i.flags)
        _put_together(i, local, steps, carried, reverse=True)
        del local, steps
    grad_u, grad_delta = (x.transpose(0, 1) if in_place else i.tokens(x.dtype) for x in (u, delta))
    grad_B, grad_C = (x.new_empty(i.directions, i.batch, i.length, used) for x in (B, C))
    totals = i.empty(i.segments, i.batch, i.states + 2, i.directions, i.channels)
    constants = dict(CHUNK=CHUNK, GROUP=GROUP, HAS_D=D is not None, HAS_CARRIED=carried is not None)
    # so many at a time that all threads are busy, as every program has notes of its own
    blocks, parts = i.grid[0], i.rows * i.segments
    together = min(parts, max(1, _programs_at_once(u.device) // max(1, blocks)))
    notes = i.empty(blocks * together, CHUNK // GROUP, i.states, CHANNELS.value)
    partial = i.empty(2, blocks, together, i.segment_length, i.states)
    tensors = (dy, i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, saved, carried, notes)
    for done in range(0, parts, max(1, together)):
        now = min(together, parts - done)
        arguments = (*tensors, grad_u, grad_delta, totals, partial, *i.sizes(), done)
        i.run(_backward, (blocks, now, 1), *arguments, **constants, **i.packed, **i.flags)
        arguments = (
            partial,
            i.orders,
            grad_C,
            grad_B,
            i.directions,
            i.length,
            i.rows,
            i.segment_length,
            blocks,
            used,
            done,
        )
        grid = (now, triton.cdiv(i.segment_length, TOKENS), 1)
        i.run(_sum_blocks, grid, *arguments, WIDTH=triton.next_power_of_2(used), TOKENS=TOKENS)
    totals = totals.sum((0, 1))
    grad_A, grad_D, grad_bias = (
        totals[:used].permute(1, 2, 0).clone(memory_format=torch.contiguous_format),
        *totals[-2:],
    )
    grad_u, grad_delta, grad_B, grad_C = (x.transpose(0, 1) for x in (grad_u, grad_delta, grad_B, grad_C))
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias)
    dtypes = [torch.float32 if x is None else x.dtype for x in (u, delta, A, B, C, D, delta_bias)]
    return [grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]
