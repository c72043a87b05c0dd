"""Triton kernels of the selective scan's backward."""

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

TOKENS = 16  # per program of _sum_blocks


@triton.jit
def _retreat(g, a, step, dy, c, N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """The gradients of the states before a token, from those of the states after it."""
    states = ()
    for n in tl.static_range(N):
        number = _number(c[n // PACK], n % PACK, PACK, TYPE)
        states = states + (tl.exp2(step * a[n]) * (g[n] + dy * number),)
    return states


@triton.jit(do_not_specialize=[*SIZES, "divisor"])
def _reverse(
    grad_y, delta, A, C, bias, orders, local, sums,
    directions, length, channels, pairs, rows, segment_length, step_B, step_C, divisor,
    N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a segment if the gradient after it were 0, and the segment's sum of steps.

    Nothing precedes the first segment, which has no program.
    """
    WORDS: tl.constexpr = N // PACK
    pair = tl.program_id(0) * LANES + tl.arange(0, LANES)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    in_pairs, in_d = pair < pairs, d < channels
    row = tl.program_id(1).to(tl.int64)
    segment = tl.program_id(2).to(tl.int64) + 1
    image, k = row // directions, row % directions
    tokens = _first_token(row, directions, rows, length)
    delta, C = delta + tokens * pairs + pair, C + tokens * step_C
    grad_y += image * length * pairs + pair
    order = orders + k * length
    a = _decays(A + k * N * channels + d, channels, in_d, N)
    offset = _optional(bias, k * channels + d, in_d, HAS_BIAS)
    g = _zeros(N)
    total = tl.zeros([CHANNELS], tl.float32)
    first = (tl.program_id(2) + 1) * segment_length
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
        g = _retreat(g, a, step, _channels(dy, PACK, TYPE) / divisor, c, N, PACK, TYPE)
        raw, dy = tl.load(delta + at * pairs, in_pairs, 0), tl.load(grad_y + at * pairs, in_pairs, 0)
        c = _words(C + at * step_C, WORDS)
        other = tl.load(order + tl.maximum(end - 4 - i, first)).to(tl.int32)
        step = _step_size(other_raw, offset, PACK, TYPE, SOFTPLUS)
        there = first + i + 1 < end
        step = tl.where(there, step, 0)
        total += step
        gradient = tl.where(there, _channels(other_dy, PACK, TYPE) / divisor, 0)
        g = _retreat(g, a, step, gradient, other_c, N, PACK, TYPE)
    _store(local + (segment * rows + row) * N * channels + d, channels, g, in_d, N)
    tl.store(sums + (segment * rows + row) * channels + d, total, in_d)


@triton.jit
def _fold(values, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Sum pairs of vectors over lanes that differ in one bit, which halves the number of vectors.

    Lanes where the bit is 0 then hold sums of the first vector of a pair, lanes where it is 1 those of the second. A
    single vector is summed in all lanes.
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
    """(CHANNELS,) -> (LANES,): the sum of each thread's two channels."""
    first, second = tl.split(tl.reshape(x, [LANES, 2]))
    return first + second


@triton.jit
def _group_inputs(u, delta, grad_y, order, begin, start, end, pairs, in_pairs, GROUP: tl.constexpr):
    """Load index, delta, u and gradient of a group's tokens, packed; a token out of range repeats the nearest one."""
    tokens, raws, xs, dys = (), (), (), ()
    for v in tl.static_range(GROUP):
        token = tl.load(order + tl.maximum(tl.minimum(begin + v, end - 1), start)).to(tl.int32)
        tokens = tokens + (token,)
        raws = raws + (tl.load(delta + token * pairs, in_pairs, 0),)
        xs = xs + (tl.load(u + token * pairs, in_pairs, 0),)
        dys = dys + (tl.load(grad_y + token * pairs, in_pairs, 0),)
    return tokens, raws, xs, dys


@triton.jit(do_not_specialize=[*SIZES, "divisor", "done"])
def _backward(
    grad_y, u, delta, A, B, C, D, bias, orders, saved, carried, group_states,
    grad_u, grad_delta, totals, partial,
    directions, length, channels, pairs, rows, segment_length, step_B, step_C, divisor, done,
    N: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CARRIED: tl.constexpr,
    SHARED_U: tl.constexpr,
):  # fmt: skip
    """Backward of one segment of one direction of an image, from its last chunk to its first.

    The first `done` parts (segments of a row) ran in earlier launches. grad_u and grad_delta may be u and delta: a
    program overwrites only what no other program reads, after reading it. `group_states` holds the states before each
    group of a chunk, `totals` the gradients of A, D and bias, `partial` those of C and B from a block of channels, in
    scan order.
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
    u += (image * length if SHARED_U else tokens) * pairs + pair
    delta += tokens * pairs + pair
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
    own_states = group_states + program * (CHUNK // GROUP * N * CHANNELS) + inner

    # each lane stores one sum: for B or C, number i_lane of a word, the token `back` before the last of its group
    lane = tl.arange(0, LANES)
    is_B, back, i_lane = lane % 2, lane // 2 % GROUP, lane // (2 * GROUP)
    own = (block + is_B * tl.num_programs(0)) * tl.num_programs(1) + tl.program_id(1)
    partial += own.to(tl.int64) * segment_length * N + i_lane

    first = part // rows * segment_length
    end = tl.minimum(first + segment_length, length)
    chunks = (end - first + CHUNK - 1) // CHUNK
    for chunk in range(chunks):
        start = first + (chunks - 1 - chunk) * CHUNK
        stop = tl.minimum(start + CHUNK, end)
        groups = (stop - start + GROUP - 1) // GROUP
        # recompute the forward up to the last group, in whole groups
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
                _store(own_states + (t // GROUP) * N * CHANNELS, CHANNELS, h, in_d, N)
            step = _step_size(raw, offset, PACK, TYPE, SOFTPLUS)
            h = _advance(h, a, step, _channels(x, PACK, TYPE), b, N, PACK, TYPE)
            raw, x = tl.load(delta + at * pairs, in_pairs, 0), tl.load(u + at * pairs, in_pairs, 0)
            b = _words(B + at * step_B, WORDS)
            following = tl.load(order + tl.minimum(start + t + 3, stop - 1)).to(tl.int32)
            step = _step_size(other_raw, offset, PACK, TYPE, SOFTPLUS)
            h = _advance(h, a, step, _channels(other_x, PACK, TYPE), other_b, N, PACK, TYPE)
            other = following
        _store(own_states + (groups - 1) * N * CHANNELS, CHANNELS, h, in_d, N)

        begin = start + (groups - 1) * GROUP
        places, raws, xs, dys = _group_inputs(u, delta, grad_y, order, begin, start, stop, pairs, in_pairs, GROUP)
        for j in range(groups):
            group = groups - 1 - j
            begin = start + group * GROUP
            steps, inputs, grads = (), (), ()
            for v in tl.static_range(GROUP):
                there = in_d & (begin + v < stop)  # tokens beyond `stop` get step 0 and change nothing
                size = _step_size(raws[v], offset, PACK, TYPE, SOFTPLUS)
                size = tl.where(there, size, 0)
                steps = steps + (size,)
                inputs = inputs + (size * _channels(xs[v], PACK, TYPE),)
                grads = grads + (tl.where(there, _channels(dys[v], PACK, TYPE) / divisor, 0),)
            # load the next group, and below each next word, while the current one is computed
            next_places, next_raws, next_xs, next_dys = _group_inputs(
                u, delta, grad_y, order, begin - GROUP, start, stop, pairs, in_pairs, GROUP
            )
            at_lane = begin + GROUP - 1 - back
            into, into_mask = partial + (at_lane - first) * N, (at_lane < stop) & (i_lane < PACK)
            to_input, to_exponent = _zeros(GROUP), _zeros(GROUP)
            before = _states(own_states + group * N * CHANNELS, CHANNELS, in_d, PACK)
            bs, cs = (), ()
            for v in tl.static_range(GROUP):
                bs, cs = bs + (tl.load(B + places[v] * step_B),), cs + (tl.load(C + places[v] * step_C),)
            for w in range(WORDS):  # g and sum_a rotate, so that those of the current word come first
                sums, new_g, new_a = (), (), ()
                following = tl.minimum(w + 1, WORDS - 1)
                next_before = _states(own_states + (group * N + following * PACK) * CHANNELS, CHANNELS, in_d, PACK)
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
    """Sum the gradients of C and B over blocks of channels, for TOKENS steps, and store them at their tokens."""
    part = done + tl.program_id(0)
    row, first = (part % rows).to(tl.int64), part // rows * segment_length
    step, n = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    there = (step < segment_length) & (first + step < length)
    token = tl.load(orders + row % directions * length + first + step, there, 0)
    mask = there[:, None] & (n < used)[None, :]
    to = (_first_token(row, directions, rows, length) + token)[:, None] * used + n[None, :]
    stretch = tl.cast(segment_length, tl.int64) * N  # numbers per block and part
    for is_B in tl.static_range(2):
        source = (
            partial + (tl.program_id(0) + is_B * blocks * tl.num_programs(0)) * stretch + step[:, None] * N + n[None, :]
        )
        total = tl.zeros([TOKENS, WIDTH], tl.float32)
        for block in range(blocks):
            total += tl.load(source + block * tl.num_programs(0) * stretch, mask, 0)
        target = grad_C if is_B == 0 else grad_B
        tl.store(target + to, total.to(target.dtype.element_ty), mask)
