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

from .eager import on_its_device
from .layout import by_direction, rows

CHUNK = 64  # tokens between two saved states; even
GROUP = 4  # tokens whose states the backward holds in registers
TOKENS = 16  # of a program that sums the gradients of B and C
PROGRAMS = 4096  # wanted; below, sequences are cut into segments
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
SIZES = ["directions", "length", "rows", "segment_length", "step_B", "step_C"]  # one kernel for all values of these
LOG2E = tl.constexpr(1.4426950408889634)
LANES = tl.constexpr(32)  # threads of a program
CHANNELS = tl.constexpr(64)  # of a program: two a thread


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), the logarithm as a series that keeps its precision near 0."""
    z = tl.exp2(-tl.abs(x) * LOG2E)
    s = z / (2 + z)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
    return tl.maximum(x, 0) + 2 * s * series


@triton.jit
def _number(word, i: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """Number i of a word in float32; 64 bits hold `PACK` numbers."""
    if PACK == 2:
        value = (word >> (i * 32)).to(tl.uint32).to(tl.float32, bitcast=True)
    else:
        half = (word >> (i // 2 * 32)).to(tl.uint32)
        if TYPE == tl.bfloat16:  # the upper half of a float32
            bits = half << 16 if i % 2 == 0 else half & 0xFFFF0000
            value = bits.to(tl.float32, bitcast=True)
        else:
            value = (half >> (i % 2 * 16)).to(tl.uint16).to(TYPE, bitcast=True).to(tl.float32)
    return value


@triton.jit
def _channels(pairs, PACK: tl.constexpr, TYPE: tl.constexpr):
    """(LANES,) words of two channels -> (CHANNELS,) in float32, every thread with its own."""
    numbers = tl.join(_number(pairs, 0, PACK, TYPE), _number(pairs, 1, PACK, TYPE))
    return tl.reshape(numbers, [CHANNELS])


@triton.jit
def _words(source, WORDS: tl.constexpr):
    words = ()
    for w in tl.static_range(WORDS):
        words = words + (tl.load(source + w),)
    return words


@triton.jit
def _states(source, stride, mask, N: tl.constexpr):
    """N vectors of channels, `stride` apart."""
    states = ()
    for n in tl.static_range(N):
        states = states + (tl.load(source + n * stride, mask, 0),)
    return states


@triton.jit
def _zeros(COUNT: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros([CHANNELS], tl.float32),)
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
def _step_size(pairs, offset, PACK: tl.constexpr, TYPE: tl.constexpr, SOFTPLUS: tl.constexpr):
    """Delta of a token after bias and softplus."""
    raw = _channels(pairs, PACK, TYPE) + offset
    if SOFTPLUS:
        step = _softplus(raw)
    else:
        step = raw
    return step


@triton.jit
def _advance(h, a, step, x, b, N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """The states after a token."""
    states = ()
    for n in tl.static_range(N):
        number = _number(b[n // PACK], n % PACK, PACK, TYPE)
        states = states + (tl.exp2(step * a[n]) * h[n] + step * x * number,)
    return states


@triton.jit
def _read(h, c, x, skip, N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """The output of a token."""
    out = skip * x
    for n in tl.static_range(N):
        out += h[n] * _number(c[n // PACK], n % PACK, PACK, TYPE)
    return out


@triton.jit
def _first_token(row, directions, rows, length):
    """The first token of a direction of an image: tokens lie direction by direction, all else image by image."""
    return (row % directions * (rows // directions) + row // directions) * length


@triton.jit
def _optional(source, at, mask, THERE: tl.constexpr):
    if THERE:
        value = tl.load(source + at, mask, 0)
    else:
        value = tl.zeros([CHANNELS], tl.float32)
    return value


@triton.jit(do_not_specialize=SIZES)
def _forward(
    u, delta, A, B, C, D, bias, orders, starts, y, saved, local, sums,
    directions, length, channels, pairs, rows, segment_length, step_B, step_C,
    N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr, KEEP: tl.constexpr, LAST: tl.constexpr, ONLY_STATE: tl.constexpr,
):  # fmt: skip
    """A segment of a direction of an image. With ONLY_STATE: its state from 0 and the sum of its steps, no output."""
    WORDS: tl.constexpr = N // PACK
    pair = tl.program_id(0) * LANES + tl.arange(0, LANES)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    in_pairs, in_d = pair < pairs, d < channels
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64)
    k = row % directions
    tokens = _first_token(row, directions, rows, length)
    u, delta, y = u + tokens * pairs + pair, delta + tokens * pairs + pair, y + tokens * channels + d
    B, C = B + tokens * step_B, C + tokens * step_C
    order = orders + k * length
    a = _decays(A + k * N * channels + d, channels, in_d, N)
    skip = _optional(D, k * channels + d, in_d, HAS_D)
    offset = _optional(bias, k * channels + d, in_d, HAS_BIAS)
    tile = row * N * channels + d
    entry = tl.cast(rows, tl.int64) * N * channels
    h = _states(starts + segment * entry + tile, channels, in_d, N) if HAS_STARTS else _zeros(N)
    total = tl.zeros([CHANNELS], tl.float32)
    first = tl.program_id(2) * segment_length
    end = tl.minimum(first + segment_length, length)
    # two tokens a turn: each one's inputs are asked for while the other is computed, its index one token earlier still
    at = tl.load(order + first).to(tl.int32)
    other = tl.load(order + tl.minimum(first + 1, end - 1)).to(tl.int32)
    raw, x = tl.load(delta + at * pairs, in_pairs, 0), tl.load(u + at * pairs, in_pairs, 0)
    b = _words(B + at * step_B, WORDS)
    c = b if ONLY_STATE else _words(C + at * step_C, WORDS)
    for t in range(first, end, 2):
        other_raw, other_x = tl.load(delta + other * pairs, in_pairs, 0), tl.load(u + other * pairs, in_pairs, 0)
        other_b = _words(B + other * step_B, WORDS)
        other_c = other_b if ONLY_STATE else _words(C + other * step_C, WORDS)
        following = tl.load(order + tl.minimum(t + 2, end - 1)).to(tl.int32)
        if KEEP:
            if (t % CHUNK == 0) & (t > 0):
                _store(saved + (t // CHUNK - 1) * entry + tile, channels, h, in_d, N)
        step = _step_size(raw, offset, PACK, TYPE, SOFTPLUS)
        value = _channels(x, PACK, TYPE)
        h = _advance(h, a, step, value, b, N, PACK, TYPE)
        if ONLY_STATE:
            total += step
        else:
            tl.store(y + at * channels, _read(h, c, value, skip, N, PACK, TYPE).to(y.dtype.element_ty), in_d)
        at = following
        raw, x = tl.load(delta + at * pairs, in_pairs, 0), tl.load(u + at * pairs, in_pairs, 0)
        b = _words(B + at * step_B, WORDS)
        c = b if ONLY_STATE else _words(C + at * step_C, WORDS)
        following = tl.load(order + tl.minimum(t + 3, end - 1)).to(tl.int32)
        step = _step_size(other_raw, offset, PACK, TYPE, SOFTPLUS)
        step = tl.where(t + 1 < end, step, 0)  # beyond the end nothing moves
        value = _channels(other_x, PACK, TYPE)
        h = _advance(h, a, step, value, other_b, N, PACK, TYPE)
        if ONLY_STATE:
            total += step
        else:
            out = _read(h, other_c, value, skip, N, PACK, TYPE)
            tl.store(y + other * channels, out.to(y.dtype.element_ty), in_d & (t + 1 < end))
        other = following
    if ONLY_STATE:
        _store(local + segment * entry + tile, channels, h, in_d, N)
        tl.store(sums + (segment * rows + row) * channels + d, total, in_d)
    elif LAST:
        if segment == tl.num_programs(2) - 1:
            last = (length + CHUNK - 1) // CHUNK - 1 if KEEP else 0
            _store(saved + last * entry + tile, channels, h, in_d, N)


@triton.jit(do_not_specialize=["directions", "rows", "segments"])
def _combine(
    A, local, sums, starts,
    directions, channels, rows, segments,
    N: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What each segment starts from: decayed by the steps of the one before, and its effect added."""
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(2)
    in_d = d < channels
    a = tl.load(A + ((row % directions) * N + n) * channels + d, in_d, 0) * LOG2E
    tile = (row * N + n) * channels + d
    entry = tl.cast(rows, tl.int64) * N * channels
    h = tl.zeros([CHANNELS], tl.float32)
    for i in range(segments):
        s = segments - 1 - i if REVERSE else i
        tl.store(starts + s * entry + tile, h, in_d)
        total = tl.load(sums + (s * rows + row) * channels + d, in_d, 0)
        h = tl.exp2(total * a) * h + tl.load(local + s * entry + tile, in_d, 0)


@triton.jit
def _retreat(g, a, step, dy, c, N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """The gradients of the states before a token, from those of the states after it."""
    states = ()
    for n in tl.static_range(N):
        number = _number(c[n // PACK], n % PACK, PACK, TYPE)
        states = states + (tl.exp2(step * a[n]) * (g[n] + dy * number),)
    return states


@triton.jit(do_not_specialize=SIZES)
def _reverse(
    grad_y, delta, A, C, bias, orders, local, sums,
    directions, length, channels, pairs, rows, segment_length, step_B, step_C,
    N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a segment, if that of the one after it were 0, and the sum of the steps."""
    WORDS: tl.constexpr = N // PACK
    pair = tl.program_id(0) * LANES + tl.arange(0, LANES)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    in_pairs, in_d = pair < pairs, d < channels
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64)
    image, k = row // directions, row % directions
    tokens = _first_token(row, directions, rows, length)
    delta, C = delta + tokens * pairs + pair, C + tokens * step_C
    grad_y += image * length * pairs + pair
    order = orders + k * length
    a = _decays(A + k * N * channels + d, channels, in_d, N)
    offset = _optional(bias, k * channels + d, in_d, HAS_BIAS)
    g = _zeros(N)
    total = tl.zeros([CHANNELS], tl.float32)
    first = tl.program_id(2) * segment_length
    end = tl.minimum(first + segment_length, length)
    at = tl.load(order + end - 1).to(tl.int32)
    other = tl.load(order + tl.maximum(end - 2, first)).to(tl.int32)
    raw, dy = tl.load(delta + at * pairs, in_pairs, 0), tl.load(grad_y + at * pairs, in_pairs, 0)
    c = _words(C + at * step_C, WORDS)
    for i in range(0, end - first, 2):
        other_raw, other_dy = tl.load(delta + other * pairs, in_pairs, 0), tl.load(grad_y + other * pairs, in_pairs, 0)
        other_c = _words(C + other * step_C, WORDS)
        at = tl.load(order + tl.maximum(end - 3 - i, first)).to(tl.int32)
        step = _step_size(raw, offset, PACK, TYPE, SOFTPLUS)
        total += step
        g = _retreat(g, a, step, _channels(dy, PACK, TYPE) / directions, c, N, PACK, TYPE)
        raw, dy = tl.load(delta + at * pairs, in_pairs, 0), tl.load(grad_y + at * pairs, in_pairs, 0)
        c = _words(C + at * step_C, WORDS)
        other = tl.load(order + tl.maximum(end - 4 - i, first)).to(tl.int32)
        step = _step_size(other_raw, offset, PACK, TYPE, SOFTPLUS)
        there = first + i + 1 < end
        step = tl.where(there, step, 0)
        total += step
        gradient = tl.where(there, _channels(other_dy, PACK, TYPE) / directions, 0)
        g = _retreat(g, a, step, gradient, other_c, N, PACK, TYPE)
    _store(local + (segment * rows + row) * N * channels + d, channels, g, in_d, N)
    tl.store(sums + (segment * rows + row) * channels + d, total, in_d)


@triton.jit
def _fold(values, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Half as many vectors over the lanes, each the sums of a pair over lanes that differ in a bit.

    The lanes without it hold the first one's, the lanes with it the second one's. A single vector is summed in all.
    """
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
    """(CHANNELS,) -> (LANES,): the sums of every thread's two."""
    first, second = tl.split(tl.reshape(x, [LANES, 2]))
    return first + second


@triton.jit
def _group_inputs(u, delta, grad_y, order, begin, start, end, pairs, in_pairs, GROUP: tl.constexpr):
    """Index, delta, u and gradient of a group's tokens, as they were loaded; a token again where there is none."""
    tokens, raws, xs, dys = (), (), (), ()
    for v in tl.static_range(GROUP):
        token = tl.load(order + tl.maximum(tl.minimum(begin + v, end - 1), start)).to(tl.int32)
        tokens = tokens + (token,)
        raws = raws + (tl.load(delta + token * pairs, in_pairs, 0),)
        xs = xs + (tl.load(u + token * pairs, in_pairs, 0),)
        dys = dys + (tl.load(grad_y + token * pairs, in_pairs, 0),)
    return tokens, raws, xs, dys


@triton.jit(do_not_specialize=[*SIZES, "done"])
def _backward(
    grad_y, u, delta, A, B, C, D, bias, orders, saved, carried, notes,
    grad_u, grad_delta, totals, partial,
    directions, length, channels, pairs, rows, segment_length, step_B, step_C, done,
    N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CARRIED: tl.constexpr,
):  # fmt: skip
    """A segment of a direction of an image, its chunks from the last to the first; `done` of them lie behind.

    grad_u and grad_delta may be u and delta: what a program reads of them it alone overwrites, later. `totals` are the
    gradients of A, D and bias, `partial` those of C and of B in a block of channels, in the order of the steps.
    """
    WORDS: tl.constexpr = N // PACK
    block = tl.program_id(0)
    inner = tl.arange(0, CHANNELS)
    pair, d = block * LANES + tl.arange(0, LANES), block * CHANNELS + inner
    in_pairs, in_d = pair < pairs, d < channels
    part = done + tl.program_id(1)
    row = (part % rows).to(tl.int64)
    segment = (part // rows).to(tl.int64)
    image, k = row // directions, row % directions
    tokens = _first_token(row, directions, rows, length)
    u, delta = u + tokens * pairs + pair, delta + tokens * pairs + pair
    grad_u, grad_delta = grad_u + tokens * channels + d, grad_delta + tokens * channels + d
    B, C = B + tokens * step_B, C + tokens * step_C
    grad_y += image * length * pairs + pair
    A += k * N * channels + d
    order = orders + k * length
    skip = _optional(D, k * channels + d, in_d, HAS_D)
    offset = _optional(bias, k * channels + d, in_d, HAS_BIAS)
    tile = row * N * channels + d
    entry = tl.cast(rows, tl.int64) * N * channels
    g = _states(carried + segment * entry + tile, channels, in_d, N) if HAS_CARRIED else _zeros(N)
    sum_a = _zeros(N)
    sum_skip = tl.zeros([CHANNELS], tl.float32)
    sum_offset = tl.zeros([CHANNELS], tl.float32)
    program = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + block
    note = notes + program * (CHUNK // GROUP * N * CHANNELS) + inner

    # where a lane's sum belongs: number i of a word, of the token `back` before a group's last, for C or for B
    lane = tl.arange(0, LANES)
    whose, back, i_lane = lane % 2, lane // 2 % GROUP, lane // (2 * GROUP)
    own = (block + whose * tl.num_programs(0)) * tl.num_programs(1) + tl.program_id(1)
    partial += own.to(tl.int64) * segment_length * N + i_lane

    first = part // rows * segment_length
    end = tl.minimum(first + segment_length, length)
    chunks = (end - first + CHUNK - 1) // CHUNK
    for chunk in range(chunks):
        start = first + (chunks - 1 - chunk) * CHUNK
        stop = tl.minimum(start + CHUNK, end)
        groups = (stop - start + GROUP - 1) // GROUP
        # the forward again, up to the last group; as there, but that groups are whole
        a = _decays(A, channels, in_d, N)
        h = _states(saved + (start // CHUNK - 1) * entry + tile, channels, in_d & (start > 0), N)
        at = tl.load(order + start).to(tl.int32)
        other = tl.load(order + tl.minimum(start + 1, stop - 1)).to(tl.int32)
        raw, x = tl.load(delta + at * pairs, in_pairs, 0), tl.load(u + at * pairs, in_pairs, 0)
        b = _words(B + at * step_B, WORDS)
        for t in range(0, (groups - 1) * GROUP, 2):
            other_raw, other_x = tl.load(delta + other * pairs, in_pairs, 0), tl.load(u + other * pairs, in_pairs, 0)
            other_b = _words(B + other * step_B, WORDS)
            at = tl.load(order + tl.minimum(start + t + 2, stop - 1)).to(tl.int32)
            if t % GROUP == 0:
                _store(note + (t // GROUP) * N * CHANNELS, CHANNELS, h, in_d, N)
            step = _step_size(raw, offset, PACK, TYPE, SOFTPLUS)
            h = _advance(h, a, step, _channels(x, PACK, TYPE), b, N, PACK, TYPE)
            raw, x = tl.load(delta + at * pairs, in_pairs, 0), tl.load(u + at * pairs, in_pairs, 0)
            b = _words(B + at * step_B, WORDS)
            following = tl.load(order + tl.minimum(start + t + 3, stop - 1)).to(tl.int32)
            step = _step_size(other_raw, offset, PACK, TYPE, SOFTPLUS)
            h = _advance(h, a, step, _channels(other_x, PACK, TYPE), other_b, N, PACK, TYPE)
            other = following
        _store(note + (groups - 1) * N * CHANNELS, CHANNELS, h, in_d, N)

        begin = start + (groups - 1) * GROUP
        places, raws, xs, dys = _group_inputs(u, delta, grad_y, order, begin, start, stop, pairs, in_pairs, GROUP)
        for j in range(groups):
            group = groups - 1 - j
            begin = start + group * GROUP
            steps, inputs, grads = (), (), ()
            for v in tl.static_range(GROUP):
                there = in_d & (begin + v < stop)  # beyond it nothing moves
                size = _step_size(raws[v], offset, PACK, TYPE, SOFTPLUS)
                size = tl.where(there, size, 0)
                steps = steps + (size,)
                inputs = inputs + (size * _channels(xs[v], PACK, TYPE),)
                grads = grads + (tl.where(there, _channels(dys[v], PACK, TYPE) / directions, 0),)
            # those of the next group, and of each next word, are asked for while this one is computed
            next_places, next_raws, next_xs, next_dys = _group_inputs(
                u, delta, grad_y, order, begin - GROUP, start, stop, pairs, in_pairs, GROUP
            )
            at_lane = begin + GROUP - 1 - back
            into, into_mask = partial + (at_lane - first) * N, (at_lane < stop) & (i_lane < PACK)
            to_input, to_exponent = _zeros(GROUP), _zeros(GROUP)
            before = _states(note + group * N * CHANNELS, CHANNELS, in_d, PACK)
            bs, cs = (), ()
            for v in tl.static_range(GROUP):
                bs, cs = bs + (tl.load(B + places[v] * step_B),), cs + (tl.load(C + places[v] * step_C),)
            for w in range(WORDS):  # g and sum_a turn, so that those of the word come first
                sums, new_g, new_a = (), (), ()
                following = tl.minimum(w + 1, WORDS - 1)
                next_before = _states(note + (group * N + following * PACK) * CHANNELS, CHANNELS, in_d, PACK)
                next_bs, next_cs = (), ()
                for v in tl.static_range(GROUP):
                    next_bs = next_bs + (tl.load(B + places[v] * step_B + following),)
                    next_cs = next_cs + (tl.load(C + places[v] * step_C + following),)
                for i in tl.static_range(PACK):
                    a_i = tl.load(A + (w * PACK + i) * channels, in_d, 0) * LOG2E
                    states, decays = (before[i],), ()
                    for v in tl.static_range(GROUP):
                        decay = tl.exp2(steps[v] * a_i)
                        states = states + (decay * states[v] + inputs[v] * _number(bs[v], i, PACK, TYPE),)
                        decays = decays + (decay,)
                    g_i, a_sum = g[i], sum_a[i]
                    values, of_input, of_exponent = (), (), ()
                    for v in tl.static_range(GROUP - 1, -1, -1):
                        g_i += grads[v] * _number(cs[v], i, PACK, TYPE)
                        values = values + (_lane_sums(grads[v] * states[v + 1]), _lane_sums(g_i * inputs[v]))
                        of_input = (to_input[v] + g_i * _number(bs[v], i, PACK, TYPE),) + of_input
                        g_i *= decays[v]
                        exponent = g_i * states[v]
                        a_sum += exponent * steps[v]
                        of_exponent = (to_exponent[v] + exponent * a_i,) + of_exponent
                    to_input, to_exponent = of_input, of_exponent
                    new_g, new_a = new_g + (g_i,), new_a + (a_sum,)
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
                before, bs, cs = next_before, next_bs, next_cs
            for v in tl.static_range(GROUP):
                there = in_d & (begin + v < stop)
                value = _channels(xs[v], PACK, TYPE)
                to_step = to_exponent[v] / LOG2E + to_input[v] * value
                if SOFTPLUS:
                    to_step = to_step / (1 + tl.exp2(-(_channels(raws[v], PACK, TYPE) + offset) * LOG2E))
                sum_offset += tl.where(there, to_step, 0)
                sum_skip += grads[v] * value
                to_x = to_input[v] * steps[v] + skip * grads[v]
                tl.store(grad_u + places[v] * channels, to_x.to(grad_u.dtype.element_ty), there)
                tl.store(grad_delta + places[v] * channels, to_step.to(grad_delta.dtype.element_ty), there)
            places, raws, xs, dys = next_places, next_raws, next_xs, next_dys
    across = tl.cast(directions, tl.int64) * channels
    totals += (segment * (rows // directions) + image) * (N + 2) * across + k * channels + d
    _store(totals, across, sum_a, in_d, N)
    tl.store(totals + N * across, sum_skip, in_d)
    tl.store(totals + (N + 1) * across, sum_offset, in_d)


@triton.jit(do_not_specialize=["directions", "length", "rows", "segment_length", "blocks", "done"])
def _sum_blocks(
    partial, orders, grad_C, grad_B,
    directions, length, rows, segment_length, blocks, used, done,
    N: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Gradients of C and B of some steps of a segment: the sums over blocks of channels, to their tokens."""
    part = done + tl.program_id(0)
    row, first = (part % rows).to(tl.int64), part // rows * segment_length
    step, n = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    there = (step < segment_length) & (first + step < length)
    token = tl.load(orders + row % directions * length + first + step, there, 0)
    mask = there[:, None] & (n < used)[None, :]
    to = (_first_token(row, directions, rows, length) + token)[:, None] * used + n[None, :]
    stretch = tl.cast(segment_length, tl.int64) * N  # of a block and part
    for whose in tl.static_range(2):
        source = (
            partial
            + (tl.program_id(0) + whose * blocks * tl.num_programs(0)) * stretch
            + step[:, None] * N
            + n[None, :]
        )
        total = tl.zeros([TOKENS, WIDTH], tl.float32)
        for block in range(blocks):
            total += tl.load(source + block * tl.num_programs(0) * stretch, mask, 0)
        target = grad_C if whose == 0 else grad_B
        tl.store(target + to, total.to(target.dtype.element_ty), mask)


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
