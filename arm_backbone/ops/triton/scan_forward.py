"""Triton kernels of the selective scan's forward."""

import triton
import triton.language as tl

from .recurrence import (
    CHANNELS,
    LANES,
    LOG2E,
    SIZES,
    _advance,
    _channels,
    _decays,
    _first_token,
    _number,
    _optional,
    _states,
    _step_size,
    _store,
    _words,
    _zeros,
)


@triton.jit
def _read(h, c, x, skip, N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """The output of a token."""
    out = skip * x
    for n in tl.static_range(N):
        out += h[n] * _number(c[n // PACK], n % PACK, PACK, TYPE)
    return out


@triton.jit(do_not_specialize=SIZES)
def _forward(
    u, delta, A, B, C, D, bias, orders, starts, y, saved, local, sums,
    directions, length, channels, pairs, rows, segment_length, step_B, step_C,
    N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SHARED_U: tl.constexpr,
    HAS_STARTS: tl.constexpr, KEEP: tl.constexpr, LAST: tl.constexpr, ONLY_STATE: tl.constexpr,
):  # fmt: skip
    """Scan one segment of one direction of an image.

    With ONLY_STATE, compute only the final state, starting from 0, and the sum of steps.
    """
    WORDS: tl.constexpr = N // PACK
    pair = tl.program_id(0) * LANES + tl.arange(0, LANES)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    in_pairs, in_d = pair < pairs, d < channels
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64)
    k = row % directions
    tokens = _first_token(row, directions, rows, length)
    u += (row // directions * length if SHARED_U else tokens) * pairs + pair
    delta, y = delta + tokens * pairs + pair, y + tokens * channels + d
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
    # two tokens per iteration: each one's inputs are loaded while the other is computed, its index one token earlier
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
        step = tl.where(t + 1 < end, step, 0)  # a step of 0 beyond the end changes nothing
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
    """The state at each segment's start: that of the previous segment, decayed by its steps, plus its effect."""
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
        followed = in_d & (i < segments - 1)
        total = tl.load(sums + (s * rows + row) * channels + d, followed, 0)
        h = tl.exp2(total * a) * h + tl.load(local + s * entry + tile, followed, 0)
