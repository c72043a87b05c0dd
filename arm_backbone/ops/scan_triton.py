"""Selective scan in Triton: all directions in one launch, tokens read in each order by index, nothing permuted.

A program runs one block of channels of one direction of one image on one warp, with the state as an (N, channels) tile
in registers. Where images and channels are too few to fill the GPU, a sequence is cut into segments that run in
parallel: a first pass finds each segment's effect on the state, and the starts are put together before the second. The
backward runs each chunk again from its saved state, keeping a few states in registers at a time. Nothing is added up by
atomics: results are deterministic. Tile sizes were chosen by the register counts of compiled kernels, not timed.

Legend: B batch, K scan directions, L tokens, D channels, N state size, S segments.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 64  # tokens between two saved states
UNROLLED = 4  # states that the backward holds in registers
CHANNELS = 64  # of a forward program: two a thread
BACKWARD_CHANNELS = 32
PROGRAMS = 4096  # wanted; below, sequences are cut into segments
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), the logarithm as a series that keeps its precision near 0."""
    z = tl.exp2(-tl.abs(x) * LOG2E)
    s = z / (2 + z)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
    return tl.maximum(x, 0) + 2 * s * series


@triton.jit
def _step_size(delta, at, bias, mask, SOFTPLUS: tl.constexpr):
    """Delta of a token's channels after bias and softplus, and before the latter; 0 where masked."""
    raw = tl.load(delta + at, mask, 0).to(tl.float32) + bias
    step = _softplus(raw) if SOFTPLUS else raw
    return tl.where(mask, step, 0), raw


@triton.jit
def _tile(n, d, row, N, channels):
    """Offsets of an (N, channels) tile in (rows, N, D)."""
    return (row * N + n[:, None]) * channels + d[None, :]


@triton.jit
def _forward(
    u, delta, A, B, C, D, bias, orders, starts, y, saved, local, sums,
    directions, length, channels, rows, segment_length,
    N: tl.constexpr, TILE_N: tl.constexpr, TILE_D: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr, KEEP: tl.constexpr, ONLY_STATE: tl.constexpr,
):  # fmt: skip
    """A segment of a direction of an image. With ONLY_STATE: its state from 0 and the sum of its steps, no output."""
    d = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2)
    k = row % directions
    n = tl.arange(0, TILE_N)
    in_d, in_n = d < channels, n < N
    in_tile = in_n[:, None] & in_d[None, :]
    a = tl.load(A + (k * channels + d[None, :]) * N + n[:, None], in_tile, 0) * LOG2E
    skip = tl.load(D + k * channels + d, in_d, 0) if HAS_D else tl.zeros([TILE_D], tl.float32)
    offset = tl.load(bias + k * channels + d, in_d, 0) if HAS_BIAS else tl.zeros([TILE_D], tl.float32)
    tile = _tile(n, d, row, N, channels)
    entry = rows * N * channels
    h = tl.zeros([TILE_N, TILE_D], tl.float32)
    if HAS_STARTS:
        h = tl.load(starts + segment * entry + tile, in_tile, 0)
    total = tl.zeros([TILE_D], tl.float32)
    first = segment * segment_length
    for t in range(first, tl.minimum(first + segment_length, length)):
        if KEEP:
            if t % CHUNK == 0:
                tl.store(saved + (t // CHUNK) * entry + tile, h, in_tile)
        at = row * length + tl.load(orders + k * length + t)
        step, _ = _step_size(delta, at * channels + d, offset, in_d, SOFTPLUS)
        x = tl.load(u + at * channels + d, in_d, 0).to(tl.float32)
        b = tl.load(B + at * N + n, in_n, 0).to(tl.float32)
        h = tl.exp2(step[None, :] * a) * h + (step * x)[None, :] * b[:, None]
        if ONLY_STATE:
            total += step
        else:
            c = tl.load(C + at * N + n, in_n, 0).to(tl.float32)
            out = tl.sum(h * c[:, None], 0) + skip * x
            tl.store(y + at * channels + d, out.to(y.dtype.element_ty), in_d)
    if ONLY_STATE:
        tl.store(local + segment * entry + tile, h, in_tile)
        tl.store(sums + (segment * rows + row) * channels + d, total, in_d)
    elif segment == tl.num_programs(2) - 1:
        last = (length + CHUNK - 1) // CHUNK if KEEP else 0
        tl.store(saved + last * entry + tile, h, in_tile)


@triton.jit
def _combine(
    A, local, sums, starts,
    directions, channels, rows, segments,
    N: tl.constexpr, TILE_N: tl.constexpr, TILE_D: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What each segment starts from: decayed by the steps of the one before, and its effect added."""
    d = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, TILE_N)
    in_d = d < channels
    in_tile = (n < N)[:, None] & in_d[None, :]
    a = tl.load(A + ((row % directions) * channels + d[None, :]) * N + n[:, None], in_tile, 0) * LOG2E
    tile = _tile(n, d, row, N, channels)
    entry = rows * N * channels
    h = tl.zeros([TILE_N, TILE_D], tl.float32)
    for i in range(segments):
        s = segments - 1 - i if REVERSE else i
        tl.store(starts + s * entry + tile, h, in_tile)
        total = tl.load(sums + (s * rows + row) * channels + d, in_d, 0)
        h = tl.exp2(total[None, :] * a) * h + tl.load(local + s * entry + tile, in_tile, 0)


@triton.jit
def _reverse(
    grad_y, delta, A, C, bias, orders, local, sums,
    directions, length, channels, rows, segment_length,
    N: tl.constexpr, TILE_N: tl.constexpr, TILE_D: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a segment, if that of the one after it were 0, and the sum of the steps."""
    d = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2)
    k = row % directions
    n = tl.arange(0, TILE_N)
    in_d, in_n = d < channels, n < N
    in_tile = in_n[:, None] & in_d[None, :]
    a = tl.load(A + (k * channels + d[None, :]) * N + n[:, None], in_tile, 0) * LOG2E
    offset = tl.load(bias + k * channels + d, in_d, 0) if HAS_BIAS else tl.zeros([TILE_D], tl.float32)
    g = tl.zeros([TILE_N, TILE_D], tl.float32)
    total = tl.zeros([TILE_D], tl.float32)
    first = segment * segment_length
    end = tl.minimum(first + segment_length, length)
    for i in range(end - first):
        token = tl.load(orders + k * length + end - 1 - i)
        at = row * length + token
        step, _ = _step_size(delta, at * channels + d, offset, in_d, SOFTPLUS)
        dy = tl.load(grad_y + ((row // directions) * length + token) * channels + d, in_d, 0).to(tl.float32)
        c = tl.load(C + at * N + n, in_n, 0).to(tl.float32)
        g = tl.exp2(step[None, :] * a) * (g + (dy / directions)[None, :] * c[:, None])
        total += step
    tl.store(local + segment * rows * N * channels + _tile(n, d, row, N, channels), g, in_tile)
    tl.store(sums + (segment * rows + row) * channels + d, total, in_d)


@triton.jit
def _backward(
    grad_y, u, delta, A, B, C, D, bias, orders, saved, carried, scratch,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias,
    directions, length, channels, rows, segment_length,
    N: tl.constexpr, TILE_N: tl.constexpr, TILE_D: tl.constexpr, CHUNK: tl.constexpr, UNROLLED: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CARRIED: tl.constexpr,
):  # fmt: skip
    """A segment of a direction of an image, its chunks from the last to the first."""
    block = tl.program_id(0)
    d = block * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2)
    k = row % directions
    n = tl.arange(0, TILE_N)
    in_d, in_n = d < channels, n < N
    in_tile = in_n[:, None] & in_d[None, :]
    a = tl.load(A + (k * channels + d[None, :]) * N + n[:, None], in_tile, 0)
    skip = tl.load(D + k * channels + d, in_d, 0) if HAS_D else tl.zeros([TILE_D], tl.float32)
    offset = tl.load(bias + k * channels + d, in_d, 0) if HAS_BIAS else tl.zeros([TILE_D], tl.float32)
    tile = _tile(n, d, row, N, channels)
    entry = rows * N * channels
    g = tl.zeros([TILE_N, TILE_D], tl.float32)
    if HAS_CARRIED:
        g = tl.load(carried + segment * entry + tile, in_tile, 0)
    sum_a = tl.zeros([TILE_N, TILE_D], tl.float32)
    sum_skip = tl.zeros([TILE_D], tl.float32)
    sum_offset = tl.zeros([TILE_D], tl.float32)
    program = (segment * tl.num_programs(1) + row) * tl.num_programs(0) + block
    inner = n[:, None] * TILE_D + tl.arange(0, TILE_D)[None, :]
    notes = scratch + program * (CHUNK // UNROLLED) * TILE_N * TILE_D + inner
    part = (block * rows + row) * length * N  # of grad_B and grad_C

    first = segment * segment_length
    end = tl.minimum(first + segment_length, length)
    chunks = (end - first + CHUNK - 1) // CHUNK
    for i in range(chunks):
        start = first + (chunks - 1 - i) * CHUNK
        count = tl.minimum(CHUNK, end - start)
        groups = (count + UNROLLED - 1) // UNROLLED
        # the forward again, noting the state before each group of tokens
        h = tl.load(saved + (start // CHUNK) * entry + tile, in_tile, 0)
        for t in range(count):
            if t % UNROLLED == 0:
                tl.store(notes + (t // UNROLLED) * TILE_N * TILE_D, h)
            at = row * length + tl.load(orders + k * length + start + t)
            step, _ = _step_size(delta, at * channels + d, offset, in_d, SOFTPLUS)
            x = tl.load(u + at * channels + d, in_d, 0).to(tl.float32)
            b = tl.load(B + at * N + n, in_n, 0).to(tl.float32)
            h = tl.exp2(step[None, :] * a * LOG2E) * h + (step * x)[None, :] * b[:, None]
        tl.debug_barrier()  # the notes are read by the threads that wrote them or by their neighbours
        for j in range(groups):
            group = groups - 1 - j
            h = tl.load(notes + group * TILE_N * TILE_D)
            states = (h,)
            for v in tl.static_range(UNROLLED):
                t = group * UNROLLED + v
                there = in_d & (t < count)  # beyond the end nothing moves
                at = row * length + tl.load(orders + k * length + start + t, t < count, 0)
                step, _ = _step_size(delta, at * channels + d, offset, there, SOFTPLUS)
                x = tl.load(u + at * channels + d, there, 0).to(tl.float32)
                b = tl.load(B + at * N + n, in_n & (t < count), 0).to(tl.float32)
                h = tl.exp2(step[None, :] * a * LOG2E) * h + (step * x)[None, :] * b[:, None]
                states = states + (h,)
            for w in tl.static_range(UNROLLED):  # from the last
                t = group * UNROLLED + UNROLLED - 1 - w
                there = in_d & (t < count)
                token = tl.load(orders + k * length + start + t, t < count, 0)
                at = row * length + token
                step, raw = _step_size(delta, at * channels + d, offset, there, SOFTPLUS)
                x = tl.load(u + at * channels + d, there, 0).to(tl.float32)
                b = tl.load(B + at * N + n, in_n & (t < count), 0).to(tl.float32)
                c = tl.load(C + at * N + n, in_n & (t < count), 0).to(tl.float32)
                dy = tl.load(grad_y + ((row // directions) * length + token) * channels + d, there, 0).to(tl.float32)
                dy = dy / directions
                g += dy[None, :] * c[:, None]
                to_c = tl.sum(dy[None, :] * states[UNROLLED - w], 1)
                to_b = tl.sum(g * (step * x)[None, :], 1)
                to_input = tl.sum(g * b[:, None], 0)
                g = g * tl.exp2(step[None, :] * a * LOG2E)
                exponent = g * states[UNROLLED - 1 - w]
                sum_a += exponent * step[None, :]
                to_step = tl.sum(exponent * a, 0) + to_input * x
                if SOFTPLUS:
                    to_step = to_step / (1 + tl.exp2(-raw * LOG2E))
                to_step = tl.where(there, to_step, 0)
                sum_offset += to_step
                sum_skip += dy * x
                to_x = to_input * step + skip * dy
                tl.store(grad_u + at * channels + d, to_x.to(grad_u.dtype.element_ty), there)
                tl.store(grad_delta + at * channels + d, to_step.to(grad_delta.dtype.element_ty), there)
                to = part + token * N + n
                tl.store(grad_B + to, to_b, in_n & (t < count))
                tl.store(grad_C + to, to_c, in_n & (t < count))
        tl.debug_barrier()
    tl.store(grad_A + segment * entry + tile, sum_a, in_tile)
    tl.store(grad_D + (segment * rows + row) * channels + d, sum_skip, in_d)
    tl.store(grad_bias + (segment * rows + row) * channels + d, sum_offset, in_d)


class _Inputs:
    """Contiguous inputs, parameters in float32, and what every kernel is launched with."""

    def __init__(self, u, delta, A, B, C, D, delta_bias, orders, delta_softplus) -> None:
        self.u, self.delta, self.B, self.C = (x.contiguous() for x in (u, delta, B, C))
        self.A, self.D, self.bias = (None if x is None else x.float().contiguous() for x in (A, D, delta_bias))
        self.orders = orders.contiguous()
        self.batch, self.directions, self.length, self.channels = u.shape
        self.rows, self.states = self.batch * self.directions, A.shape[2]
        self.flags = dict(SOFTPLUS=delta_softplus, HAS_BIAS=delta_bias is not None)
        self.tile_n = triton.next_power_of_2(self.states)
        blocks = triton.cdiv(self.channels, CHANNELS)
        chunks = triton.cdiv(self.length, CHUNK)
        wanted = min(chunks, max(1, PROGRAMS // max(1, self.rows * blocks)))
        self.segment_length = triton.cdiv(chunks, wanted) * CHUNK
        self.segments = max(1, triton.cdiv(self.length, self.segment_length))

    def sizes(self) -> tuple[int, ...]:
        return self.directions, self.length, self.channels, self.rows, self.segment_length

    def grid(self, channels: int) -> tuple[int, int, int]:
        return triton.cdiv(self.channels, channels), self.rows, self.segments

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.u.device)

    def tiles(self, count: int) -> Tensor:
        """(count, B, K, N, D)"""
        return self.empty(count, self.batch, self.directions, self.states, self.channels)

    def run(self, kernel, grid, *arguments, channels: int, **constants) -> None:
        if all(grid):
            shape = dict(N=self.states, TILE_N=self.tile_n, TILE_D=channels)
            kernel[grid](*arguments, **shape, **constants, num_warps=1)


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
) -> tuple[Tensor, Tensor]:
    """Arguments as `arm_backbone.ops.cross_scan`.

    Returns:
        y (B, L, D), and the states (S + 1, B, K, N, D) before each chunk and after the last, or without `keep` the
        latter alone, (1, B, K, N, D).
    """
    i = _Inputs(u, delta, A, B, C, D, delta_bias, orders, delta_softplus)
    y = torch.empty_like(i.u)
    saved = i.tiles(triton.cdiv(i.length, CHUNK) + 1 if keep else 1)
    cut = i.segments > 1
    local, sums, starts = (
        (i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels), i.tiles(i.segments)) if cut else (None,) * 3
    )

    def run(only_state: bool) -> None:
        tensors = (i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, starts, y, saved, local, sums)
        constants = dict(HAS_D=D is not None, HAS_STARTS=cut and not only_state, ONLY_STATE=only_state)
        constants |= dict(KEEP=keep and not only_state, CHUNK=CHUNK, **i.flags)
        i.run(_forward, i.grid(CHANNELS), *tensors, *i.sizes(), channels=CHANNELS, **constants)

    if cut:
        run(only_state=True)
        _put_together(i, local, sums, starts, reverse=False)
    run(only_state=False)
    return y.mean(1, dtype=torch.float32).to(u.dtype), saved


def _put_together(i: _Inputs, local: Tensor, sums: Tensor, starts: Tensor, reverse: bool) -> None:
    sizes = (i.directions, i.channels, i.rows, i.segments)
    grid = (*i.grid(CHANNELS)[:2], 1)
    i.run(_combine, grid, i.A, local, sums, starts, *sizes, channels=CHANNELS, REVERSE=reverse)


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
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D and delta_bias, each in its tensor's type; D's and the bias's always made."""
    i = _Inputs(u, delta, A, B, C, D, delta_bias, orders, delta_softplus)
    grad_y = grad_y.contiguous()
    carried = None
    if i.segments > 1:
        local, carried, sums = i.tiles(i.segments), i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels)
        tensors = (grad_y, i.delta, i.A, i.C, i.bias, i.orders, local, sums)
        i.run(_reverse, i.grid(CHANNELS), *tensors, *i.sizes(), channels=CHANNELS, **i.flags)
        _put_together(i, local, sums, carried, reverse=True)
    grid = i.grid(BACKWARD_CHANNELS)
    programs = grid[0] * grid[1] * grid[2]
    scratch = i.empty(programs, CHUNK // UNROLLED, i.tile_n, BACKWARD_CHANNELS)
    grad_u, grad_delta = torch.empty_like(i.u), torch.empty_like(i.delta)
    grad_A = i.tiles(i.segments)
    grad_B, grad_C = (i.empty(grid[0], *B.shape) for _ in range(2))
    grad_D, grad_bias = (i.empty(i.segments, i.batch, i.directions, i.channels) for _ in range(2))
    tensors = (grad_y, i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, saved, carried, scratch)
    results = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias)
    constants = dict(CHUNK=CHUNK, UNROLLED=UNROLLED, HAS_D=D is not None, HAS_CARRIED=carried is not None, **i.flags)
    i.run(_backward, grid, *tensors, *results, *i.sizes(), channels=BACKWARD_CHANNELS, **constants)
    grads = (
        *(grad_u, grad_delta, grad_A.sum((0, 1)).transpose(1, 2).contiguous()),
        *(grad_B.sum(0), grad_C.sum(0), grad_D.sum((0, 1)), grad_bias.sum((0, 1))),
    )
    dtypes = [torch.float32 if x is None else x.dtype for x in (u, delta, A, B, C, D, delta_bias)]
    return [grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]
