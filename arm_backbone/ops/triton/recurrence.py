"""Building blocks of the Triton scan kernels: loading, unpacking and one step of the recurrence."""

import triton
import triton.language as tl

CHUNK = 64  # tokens between two saved states; even
GROUP = 4  # tokens whose states the backward holds in registers
SIZES = ["directions", "length", "rows", "segment_length", "step_B", "step_C"]  # no new kernel for each value
LOG2E = tl.constexpr(1.4426950408889634)
LANES = tl.constexpr(32)  # threads per program
CHANNELS = tl.constexpr(64)  # per program: two per thread


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), with a series for the logarithm that is precise near log(1)."""
    z = tl.exp2(-tl.abs(x) * LOG2E)
    s = z / (2 + z)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
    return tl.maximum(x, 0) + 2 * s * series


@triton.jit
def _number(word, i: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """Number i of a word as float32; a 64-bit word holds `PACK` numbers."""
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
    """(LANES,) words of two channels -> (CHANNELS,) as float32; each thread keeps its own two."""
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
    """Load N vectors of channels, `stride` apart."""
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
    """Load A for N states, multiplied by log2(e) for exp2."""
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
def _first_token(row, directions, rows, length):
    """Index of the first token of a row: tokens are laid out by direction, rows are numbered by image."""
    return (row % directions * (rows // directions) + row // directions) * length


@triton.jit
def _optional(source, at, mask, THERE: tl.constexpr):
    if THERE:
        value = tl.load(source + at, mask, 0)
    else:
        value = tl.zeros([CHANNELS], tl.float32)
    return value
