"""Selective scan in Triton: all directions in one launch, tokens read in each order by index, nothing permuted.

A program, one warp, runs a block of channels of one direction of one image, every thread with the whole state of its
channels in registers, so that a step needs neither shared memory nor other threads; B and C, the same for all channels,
come as 64-bit words of several numbers. Where images and channels are too few to fill the GPU, a sequence is cut into
segments that run in parallel: a first pass finds each segment's effect on the state, and the starts are put together
before the second. The backward runs each chunk again from its saved state and notes the state before each group of
tokens; a group's decays and states then stay in registers, one state after the other. Sums over channels go from thread
to thread, halving what each holds with every exchange. Nothing is added up by atomics: results are deterministic.

Legend: B batch, K scan directions, L tokens, D channels, N state size, S segments.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .layout import by_direction

CHUNK = 64  # tokens between two saved states
GROUP = 4  # tokens whose states the backward holds in registers
CHANNELS = 64  # of a program: two a thread
PROGRAMS = 4096  # wanted; below, sequences are cut into segments
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
LOG2E = tl.constexpr(1.4426950408889634)
LANES = tl.constexpr(32)  # that the sums over channels are spread over


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), the logarithm as a series that keeps its precision near 0."""
    z = tl.exp2(-tl.abs(x) * LOG2E)
    s = z / (2 + z)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
    return tl.maximum(x, 0) + 2 * s * series


@triton.jit
def _step_size(raw, SOFTPLUS: tl.constexpr):
    if SOFTPLUS:
        step = _softplus(raw)
    else:
        step = raw
    return step


@triton.jit
def _words(source, at, WORDS: tl.constexpr):
    """A token's numbers, as they lie in 64-bit words."""
    words = ()
    for w in tl.static_range(WORDS):
        words = words + (tl.load(source + at * WORDS + w),)
    return words


@triton.jit
def _number(word, i: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """Number i of the `PACK` in a word, in float32."""
    half = (word >> (i * 2 // PACK * 32)).to(tl.uint32)
    if PACK == 2:
        value = half.to(tl.float32, bitcast=True)
    elif TYPE == tl.bfloat16:  # the upper half of a float32
        bits = half << 16 if i % 2 == 0 else half & 0xFFFF0000
        value = bits.to(tl.float32, bitcast=True)
    else:
        value = (half >> (i % 2 * 16)).to(tl.uint16).to(TYPE, bitcast=True).to(tl.float32)
    return value


@triton.jit
def _states(source, stride, mask, N: tl.constexpr):
    """N vectors of channels, `stride` apart."""
    states = ()
    for n in tl.static_range(N):
        states = states + (tl.load(source + n * stride, mask, 0),)
    return states


@triton.jit
def _zeros(COUNT: tl.constexpr, TILE_D: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros([TILE_D], tl.float32),)
    return zeros


@triton.jit
def _store(target, stride, states, mask, N: tl.constexpr):
    for n in tl.static_range(N):
        tl.store(target + n * stride, states[n], mask)


@triton.jit
def _decays(A, stride, mask, N: tl.constexpr):
    """A of N states, for powers of 2."""
    decays = ()
    for n in tl.static_range(N):
        decays = decays + (tl.load(A + n * stride, mask, 0) * LOG2E,)
    return decays


@triton.jit
def _advance(h, a, step, x, b, N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """The states after a token."""
    states = ()
    for n in tl.static_range(N):
        number = _number(b[n // PACK], n % PACK, PACK, TYPE)
        states = states + (tl.exp2(step * a[n]) * h[n] + step * x * number,)
    return states


@triton.jit
def _base(row, directions, rows, length):
    """The first token of a direction of an image: tokens lie direction by direction, all else image by image."""
    return (row % directions * (rows // directions) + row // directions) * length


@triton.jit
def _forward(
    u, delta, A, B, C, D, bias, orders, starts, y, saved, local, sums,
    directions, length, channels, rows, segment_length,
    N: tl.constexpr, TILE_D: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr, KEEP: tl.constexpr, ONLY_STATE: tl.constexpr,
):  # fmt: skip
    """A segment of a direction of an image. With ONLY_STATE: its state from 0 and the sum of its steps, no output."""
    WORDS: tl.constexpr = N // PACK
    d = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64)
    k = row % directions
    base = _base(row, directions, rows, length)
    in_d = d < channels
    a = _decays(A + k * N * channels + d, channels, in_d, N)
    skip = tl.load(D + k * channels + d, in_d, 0) if HAS_D else tl.zeros([TILE_D], tl.float32)
    offset = tl.load(bias + k * channels + d, in_d, 0) if HAS_BIAS else tl.zeros([TILE_D], tl.float32)
    tile = row * N * channels + d
    entry = tl.cast(rows, tl.int64) * N * channels
    h = _states(starts + segment * entry + tile, channels, in_d, N) if HAS_STARTS else _zeros(N, TILE_D)
    total = tl.zeros([TILE_D], tl.float32)
    first = tl.program_id(2) * segment_length
    end = tl.minimum(first + segment_length, length)
    order = orders + k * length
    # the inputs of a token are asked for while the one before it is computed, its index one token earlier still
    at = base + tl.load(order + first)
    following = tl.load(order + tl.minimum(first + 1, end - 1))
    raw, x = tl.load(delta + at * channels + d, in_d, 0), tl.load(u + at * channels + d, in_d, 0)
    b = _words(B, at, WORDS)
    c = b if ONLY_STATE else _words(C, at, WORDS)
    for t in range(first, end):
        next_at = base + following
        following = tl.load(order + tl.minimum(t + 2, end - 1))
        next_raw = tl.load(delta + next_at * channels + d, in_d, 0)
        next_x = tl.load(u + next_at * channels + d, in_d, 0)
        next_b = _words(B, next_at, WORDS)
        next_c = next_b if ONLY_STATE else _words(C, next_at, WORDS)
        if KEEP:
            if t % CHUNK == 0:
                _store(saved + (t // CHUNK) * entry + tile, channels, h, in_d, N)
        step = _step_size(raw.to(tl.float32) + offset, SOFTPLUS)
        value = x.to(tl.float32)
        h = _advance(h, a, step, value, b, N, PACK, TYPE)
        if ONLY_STATE:
            total += step
        else:
            out = skip * value
            for n in tl.static_range(N):
                out += h[n] * _number(c[n // PACK], n % PACK, PACK, TYPE)
            tl.store(y + at * channels + d, out.to(y.dtype.element_ty), in_d)
        at, raw, x, b, c = next_at, next_raw, next_x, next_b, next_c
    if ONLY_STATE:
        _store(local + segment * entry + tile, channels, h, in_d, N)
        tl.store(sums + (segment * rows + row) * channels + d, total, in_d)
    elif segment == tl.num_programs(2) - 1:
        last = (length + CHUNK - 1) // CHUNK if KEEP else 0
        _store(saved + last * entry + tile, channels, h, in_d, N)


@triton.jit
def _combine(
    A, local, sums, starts,
    directions, channels, rows, segments,
    N: tl.constexpr, TILE_D: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What each segment starts from: decayed by the steps of the one before, and its effect added."""
    d = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(2)
    in_d = d < channels
    a = tl.load(A + ((row % directions) * N + n) * channels + d, in_d, 0) * LOG2E
    tile = (row * N + n) * channels + d
    entry = tl.cast(rows, tl.int64) * N * channels
    h = tl.zeros([TILE_D], tl.float32)
    for i in range(segments):
        s = segments - 1 - i if REVERSE else i
        tl.store(starts + s * entry + tile, h, in_d)
        total = tl.load(sums + (s * rows + row) * channels + d, in_d, 0)
        h = tl.exp2(total * a) * h + tl.load(local + s * entry + tile, in_d, 0)


@triton.jit
def _reverse(
    grad_y, delta, A, C, bias, orders, local, sums,
    directions, length, channels, rows, segment_length,
    N: tl.constexpr, TILE_D: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a segment, if that of the one after it were 0, and the sum of the steps."""
    WORDS: tl.constexpr = N // PACK
    d = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64)
    image, k = row // directions, row % directions
    base = _base(row, directions, rows, length)
    in_d = d < channels
    a = _decays(A + k * N * channels + d, channels, in_d, N)
    offset = tl.load(bias + k * channels + d, in_d, 0) if HAS_BIAS else tl.zeros([TILE_D], tl.float32)
    g = _zeros(N, TILE_D)
    total = tl.zeros([TILE_D], tl.float32)
    first = tl.program_id(2) * segment_length
    end = tl.minimum(first + segment_length, length)
    order = orders + k * length
    token = tl.load(order + end - 1)
    following = tl.load(order + tl.maximum(end - 2, first))
    raw = tl.load(delta + (base + token) * channels + d, in_d, 0)
    dy = tl.load(grad_y + (image * length + token) * channels + d, in_d, 0)
    c = _words(C, base + token, WORDS)
    for i in range(end - first):
        next_raw = tl.load(delta + (base + following) * channels + d, in_d, 0)
        next_dy = tl.load(grad_y + (image * length + following) * channels + d, in_d, 0)
        next_c = _words(C, base + following, WORDS)
        following = tl.load(order + tl.maximum(end - 3 - i, first))
        step = _step_size(raw.to(tl.float32) + offset, SOFTPLUS)
        gradient = dy.to(tl.float32) / directions
        states = ()
        for n in tl.static_range(N):
            number = _number(c[n // PACK], n % PACK, PACK, TYPE)
            states = states + (tl.exp2(step * a[n]) * (g[n] + gradient * number),)
        g = states
        total += step
        raw, dy, c = next_raw, next_dy, next_c
    _store(local + (segment * rows + row) * N * channels + d, channels, g, in_d, N)
    tl.store(sums + (segment * rows + row) * channels + d, total, in_d)


@triton.jit
def _fold(values, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Half as many vectors over the lanes, each the sums of a pair over lanes that differ in a bit: the lanes without it
    hold the first one's, the lanes with it the second one's. A single vector is summed in all lanes."""
    upper = (lane >> BIT) % 2 == 1
    other = lane ^ (1 << BIT)
    folded = ()
    if COUNT == 1:
        folded = (values[0] + tl.gather(values[0], other, 0),)
    else:
        for i in tl.static_range(COUNT // 2):
            first, second = values[2 * i], values[2 * i + 1]
            given = tl.gather(tl.where(upper, first, second), other, 0)
            folded = folded + (tl.where(upper, second, first) + given,)
    return folded


@triton.jit
def _lane_sums(x):
    """(2 LANES,) -> (LANES,): the sums of neighbouring channels, which are a thread's own."""
    first, second = tl.split(tl.reshape(x, [LANES, 2]))
    return first + second


@triton.jit
def _backward(
    grad_y, u, delta, A, B, C, D, bias, orders, saved, carried, notes,
    grad_u, grad_delta, grad_A, grad_CB, grad_D, grad_bias,
    directions, length, channels, rows, segment_length,
    N: tl.constexpr, TILE_D: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CARRIED: tl.constexpr,
):  # fmt: skip
    """A segment of a direction of an image, its chunks from the last to the first."""
    WORDS: tl.constexpr = N // PACK
    block = tl.program_id(0)
    inner = tl.arange(0, TILE_D)
    d = block * TILE_D + inner
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64)
    image, k = row // directions, row % directions
    base = _base(row, directions, rows, length)
    in_d = d < channels
    a = _decays(A + k * N * channels + d, channels, in_d, N)
    skip = tl.load(D + k * channels + d, in_d, 0) if HAS_D else tl.zeros([TILE_D], tl.float32)
    offset = tl.load(bias + k * channels + d, in_d, 0) if HAS_BIAS else tl.zeros([TILE_D], tl.float32)
    tile = row * N * channels + d
    entry = tl.cast(rows, tl.int64) * N * channels
    g = _states(carried + segment * entry + tile, channels, in_d, N) if HAS_CARRIED else _zeros(N, TILE_D)
    sum_a = _zeros(N, TILE_D)
    sum_skip = tl.zeros([TILE_D], tl.float32)
    sum_offset = tl.zeros([TILE_D], tl.float32)
    program = (segment * tl.num_programs(1) + row) * tl.num_programs(0) + block
    note = notes + program * (CHUNK // GROUP * N * TILE_D) + inner
    part = grad_CB + (tl.cast(rows, tl.int64) * length * block + base) * N
    order = orders + k * length

    # where a lane's sum belongs: number i of a word, of the token `back` before a group's last, for C or for B
    lane = tl.arange(0, LANES)
    whose, back, i_lane = lane % 2, lane // 2 % GROUP, lane // (2 * GROUP)
    to_lane = whose * (tl.cast(rows, tl.int64) * length * tl.num_programs(0) * N) + i_lane

    first = tl.program_id(2) * segment_length
    end = tl.minimum(first + segment_length, length)
    chunks = (end - first + CHUNK - 1) // CHUNK
    for chunk in range(chunks):
        start = first + (chunks - 1 - chunk) * CHUNK
        count = tl.minimum(CHUNK, end - start)
        groups = (count + GROUP - 1) // GROUP
        # the forward again, up to the last group
        h = _states(saved + (start // CHUNK) * entry + tile, channels, in_d, N)
        at = base + tl.load(order + start)
        following = tl.load(order + tl.minimum(start + 1, end - 1))
        raw, x = tl.load(delta + at * channels + d, in_d, 0), tl.load(u + at * channels + d, in_d, 0)
        b = _words(B, at, WORDS)
        for j in range(groups):
            _store(note + j * N * TILE_D, TILE_D, h, in_d, N)
            for t in range(j * GROUP, tl.minimum((j + 1) * GROUP, (groups - 1) * GROUP)):
                next_at = base + following
                following = tl.load(order + tl.minimum(start + t + 2, end - 1))
                next_raw = tl.load(delta + next_at * channels + d, in_d, 0)
                next_x = tl.load(u + next_at * channels + d, in_d, 0)
                next_b = _words(B, next_at, WORDS)
                step = _step_size(raw.to(tl.float32) + offset, SOFTPLUS)
                h = _advance(h, a, step, x.to(tl.float32), b, N, PACK, TYPE)
                raw, x, b = next_raw, next_x, next_b
        for j in range(groups):
            group = groups - 1 - j
            begin = start + group * GROUP
            tokens, steps, inputs, grads = (), (), (), ()
            for v in tl.static_range(GROUP):
                there = begin + v < end  # beyond it nothing moves
                token = tl.load(order + tl.minimum(begin + v, end - 1))
                place = (base + token) * channels + d
                size = _step_size(tl.load(delta + place, in_d, 0).to(tl.float32) + offset, SOFTPLUS)
                size = tl.where(there & in_d, size, 0)
                dy = tl.load(grad_y + (image * length + token) * channels + d, in_d & there, 0)
                tokens, steps = tokens + (token,), steps + (size,)
                inputs = inputs + (size * tl.load(u + place, in_d, 0).to(tl.float32),)
                grads = grads + (dy.to(tl.float32) / directions,)
            at_lane = begin + GROUP - 1 - back
            token_lane = tl.load(order + tl.minimum(at_lane, end - 1))
            into = part + token_lane * N + to_lane
            into_mask = (at_lane < end) & (i_lane < PACK)
            to_input, to_exponent = _zeros(GROUP, TILE_D), _zeros(GROUP, TILE_D)
            for w in range(WORDS):  # g and sum_a turn, so that those of the word come first
                to_inputs, from_states = (), ()  # words of B and C
                for v in tl.static_range(GROUP):
                    word = (base + tokens[v]) * WORDS + w
                    to_inputs = to_inputs + (tl.load(B + word),)
                    from_states = from_states + (tl.load(C + word),)
                sums, new_g, new_a = (), (), ()
                for i in tl.static_range(PACK):
                    states = (tl.load(note + (group * N + w * PACK + i) * TILE_D, in_d, 0),)
                    a_i = tl.load(A + (k * N + w * PACK + i) * channels + d, in_d, 0) * LOG2E
                    decays = ()
                    for v in tl.static_range(GROUP):
                        decay = tl.exp2(steps[v] * a_i)
                        number = _number(to_inputs[v], i, PACK, TYPE)
                        states = states + (decay * states[v] + inputs[v] * number,)
                        decays = decays + (decay,)
                    g_n, a_n = g[i], sum_a[i]
                    values, of_input, of_exponent = (), (), ()
                    for v in tl.static_range(GROUP - 1, -1, -1):
                        g_n += grads[v] * _number(from_states[v], i, PACK, TYPE)
                        to_c = _lane_sums(grads[v] * states[v + 1])
                        to_b = _lane_sums(g_n * inputs[v])
                        values = values + (to_c, to_b)
                        of_input = (to_input[v] + g_n * _number(to_inputs[v], i, PACK, TYPE),) + of_input
                        g_n *= decays[v]
                        exponent = g_n * states[v]
                        a_n += exponent * steps[v]
                        of_exponent = (to_exponent[v] + exponent * a_i,) + of_exponent
                    to_input, to_exponent = of_input, of_exponent
                    new_g, new_a = new_g + (g_n,), new_a + (a_n,)
                    values = _fold(values, lane, 0, 8)
                    values = _fold(values, lane, 1, 4)
                    sums = sums + _fold(values, lane, 2, 2)
                if PACK == 4:
                    sums = _fold(sums, lane, 3, 4)
                    sums = _fold(sums, lane, 4, 2)
                else:
                    sums = _fold(sums, lane, 3, 2)
                    sums = _fold(sums, lane, 4, 1)
                tl.store(into + w * PACK, sums[0], into_mask)
                g, sum_a = g[PACK:] + new_g, sum_a[PACK:] + new_a
            for v in tl.static_range(GROUP):
                there = in_d & (begin + v < end)
                place = (base + tokens[v]) * channels + d
                value = tl.load(u + place, there, 0).to(tl.float32)
                to_step = to_exponent[v] / LOG2E + to_input[v] * value
                if SOFTPLUS:
                    before = tl.load(delta + place, there, 0).to(tl.float32) + offset
                    to_step = to_step / (1 + tl.exp2(-before * LOG2E))
                sum_offset += tl.where(there, to_step, 0)
                sum_skip += grads[v] * value
                to_x = to_input[v] * steps[v] + skip * grads[v]
                tl.store(grad_u + place, to_x.to(grad_u.dtype.element_ty), there)
                tl.store(grad_delta + place, to_step.to(grad_delta.dtype.element_ty), there)
    _store(grad_A + segment * entry + tile, channels, sum_a, in_d, N)
    tl.store(grad_D + (segment * rows + row) * channels + d, sum_skip, in_d)
    tl.store(grad_bias + (segment * rows + row) * channels + d, sum_offset, in_d)


class _Inputs:
    """Contiguous inputs, parameters in float32, and what every kernel is launched with.

    States are filled up to whole words of B and C with some that stay 0.
    """

    def __init__(self, u, delta, A, B, C, D, delta_bias, orders, delta_softplus) -> None:
        self.u, self.delta = by_direction(u), by_direction(delta)
        self.batch, self.directions, self.length, self.channels = u.shape
        self.rows = self.batch * self.directions
        pack = 8 // B.element_size()
        unused = -A.shape[2] % pack
        self.states = A.shape[2] + unused
        self.B, self.C = (by_direction(F.pad(x.to(B.dtype), (0, unused))).view(torch.int64) for x in (B, C))
        self.A = F.pad(A.float(), (0, unused)).transpose(1, 2).contiguous()
        self.D, self.bias = (None if x is None else x.float().contiguous() for x in (D, delta_bias))
        self.orders = orders.contiguous()
        self.packed = dict(PACK=pack, TYPE=TYPES[B.dtype])
        self.flags = dict(SOFTPLUS=delta_softplus, HAS_BIAS=delta_bias is not None)
        blocks = triton.cdiv(self.channels, CHANNELS)
        chunks = triton.cdiv(self.length, CHUNK)
        wanted = min(chunks, max(1, PROGRAMS // max(1, self.rows * blocks)))
        self.segment_length = triton.cdiv(chunks, wanted) * CHUNK
        self.segments = max(1, triton.cdiv(self.length, self.segment_length))
        self.grid = blocks, self.rows, self.segments

    def sizes(self) -> tuple[int, ...]:
        return self.directions, self.length, self.channels, self.rows, self.segment_length

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.u.device)

    def tiles(self, count: int) -> Tensor:
        """(count, B, K, N, D)"""
        return self.empty(count, self.batch, self.directions, self.states, self.channels)

    def run(self, kernel, grid: tuple[int, int, int], *arguments, **constants) -> None:
        if all(grid):
            kernel[grid](*arguments, N=self.states, TILE_D=CHANNELS, **constants, num_warps=1)


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
        constants |= dict(KEEP=keep and not only_state, CHUNK=CHUNK, **i.packed, **i.flags)
        i.run(_forward, i.grid, *tensors, *i.sizes(), **constants)

    if cut:
        run(only_state=True)
        _put_together(i, local, sums, starts, reverse=False)
    run(only_state=False)
    return y.mean(0), saved[:, :, :, : A.shape[2]].contiguous()


def _put_together(i: _Inputs, local: Tensor, sums: Tensor, starts: Tensor, reverse: bool) -> None:
    sizes = (i.directions, i.channels, i.rows, i.segments)
    i.run(_combine, (*i.grid[:2], i.states), i.A, local, sums, starts, *sizes, REVERSE=reverse)


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
    used = A.shape[2]
    saved = F.pad(saved, (0, 0, 0, i.states - used))
    grad_y = grad_y.contiguous()
    carried = None
    if i.segments > 1:
        local, carried, sums = i.tiles(i.segments), i.tiles(i.segments), i.empty(i.segments, i.rows, i.channels)
        tensors = (grad_y, i.delta, i.A, i.C, i.bias, i.orders, local, sums)
        i.run(_reverse, i.grid, *tensors, *i.sizes(), **i.packed, **i.flags)
        _put_together(i, local, sums, carried, reverse=True)
    notes = i.empty(*reversed(i.grid), CHUNK // GROUP, i.states, CHANNELS)
    grad_u, grad_delta = torch.empty_like(i.u), torch.empty_like(i.delta)
    grad_A = i.tiles(i.segments)
    grad_CB = i.empty(2, i.grid[0], i.directions, i.batch, i.length, i.states)
    grad_D, grad_bias = (i.empty(i.segments, i.batch, i.directions, i.channels) for _ in range(2))
    tensors = (grad_y, i.u, i.delta, i.A, i.B, i.C, i.D, i.bias, i.orders, saved, carried, notes)
    results = (grad_u, grad_delta, grad_A, grad_CB, grad_D, grad_bias)
    constants = dict(CHUNK=CHUNK, GROUP=GROUP, HAS_D=D is not None, HAS_CARRIED=carried is not None)
    i.run(_backward, i.grid, *tensors, *results, *i.sizes(), **constants, **i.packed, **i.flags)
    grad_C, grad_B = (x.sum(0)[..., :used].contiguous() for x in grad_CB)
    grad_u, grad_delta, grad_B, grad_C = (x.transpose(0, 1) for x in (grad_u, grad_delta, grad_B, grad_C))
    grad_A = grad_A.sum((0, 1))[:, :used].transpose(1, 2).contiguous()
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D.sum((0, 1)), grad_bias.sum((0, 1)))
    dtypes = [torch.float32 if x is None else x.dtype for x in (u, delta, A, B, C, D, delta_bias)]
    return [grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]
