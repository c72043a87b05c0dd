// Selective scan, causal convolution, gate and norm on vectors of channels; compiled once for each instruction set.
//
// Channels-last, so that a token is a row of memory: vectors run over channels, a scan order is a sequence of row numbers,
// and the recurrence needs no reduction. Legend: kernels.h.

#include "kernels.h"

#include "vector.h"

namespace {

constexpr int BLOCK = 4;             // states held in registers together
constexpr int GROUP = 64;            // channels that go through a segment together: four lines of memory at every token
constexpr int WIDE = GROUP / LANES;  // their vectors

constexpr int64_t SUMS = 1 << 21;  // floats of a thread in which directions of bfloat16 are added up, about

// Memory of a thread. Nothing of the standard library: its templates, compiled for several instruction sets, would be merged
// into one by the linker.
struct Scratch {
    char *memory = nullptr;
    int64_t size = 0;

    template <typename T>
    T *of(int64_t count) {
        constexpr int64_t align = 64;  // a line of the cache
        const int64_t wanted = count * sizeof(T) + align;
        if (wanted > size) {
            delete[] memory;
            memory = new char[wanted];
            size = wanted;
        }
        return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(memory) + align - 1) / align * align);
    }

    ~Scratch() { delete[] memory; }
};

// Channels from `first` up to `end` of a parameter (D, N), as (N, D).
void transpose(const float *from, int64_t D, int64_t N, int64_t first, int64_t end, float *to) {
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = first; c < end; c++) to[n * D + c] = from[c * N + n];
}

// And back.
void transpose_back(const float *from, int64_t D, int64_t N, int64_t first, int64_t end, float *to) {
    for (int64_t c = first; c < end; c++)
        for (int64_t n = 0; n < N; n++) to[c * N + n] = from[n * D + c];
}

// One direction of one image.
template <typename T>
struct Rows {
    const T *u, *delta;
    const void *B, *C;
    const int64_t *order;

    Rows(const Scan &s, int64_t image, int64_t k) {
        const int64_t at = (k * s.batch + image) * s.length, size = s.half_BC ? sizeof(bf16) : sizeof(float);
        u = static_cast<const T *>(s.u) + at * s.channels;
        delta = static_cast<const T *>(s.delta) + at * s.channels;
        B = static_cast<const char *>(s.B) + at * s.row_B * size;
        C = static_cast<const char *>(s.C) + at * s.row_C * size;
        order = s.orders + k * s.length;
    }
};

// Up to SEGMENT tokens of a direction, with their B and C in float32, (count, N) each.
struct Segment {
    const int64_t *order;  // their numbers
    int count;
    const int64_t *next;  // numbers of those that are read afterwards
    int next_count;
    float *B, *C;

    static int64_t memory(int64_t N) { return 2 * SEGMENT * N; }  // floats

    template <typename T>
    Segment(const Scan &s, const Rows<T> &rows, int64_t start, int64_t next_start, float *memory)
        : order(rows.order + start), B(memory), C(memory + SEGMENT * s.states) {
        const auto count_from = [&](int64_t from) { return s.length - from < SEGMENT ? s.length - from : SEGMENT; };
        count = count_from(start);
        const bool more = next_start >= 0 && next_start < s.length;
        next = more ? rows.order + next_start : nullptr;
        next_count = more ? count_from(next_start) : 0;
        if (s.half_BC) {
            gather(static_cast<const bf16 *>(rows.B), s.row_B, s.states, B);
            gather(static_cast<const bf16 *>(rows.C), s.row_C, s.states, C);
        } else {
            gather(static_cast<const float *>(rows.B), s.row_B, s.states, B);
            gather(static_cast<const float *>(rows.C), s.row_C, s.states, C);
        }
    }

    template <typename T>
    void gather(const T *from, int64_t row, int64_t N, float *to) const {
        for (int t = 0; t < count; t++)
            for (int64_t n = 0; n < N; n += LANES) {
                const int lanes = N - n < LANES ? N - n : LANES;
                store_some(to + t * N + n, load_some(from + order[t] * row + n, lanes), lanes);
            }
    }
};

// V vectors of a row, into the second-level cache, to be read or (1) written. Rows of the next segment lie apart, where no
// hardware looks ahead.
template <int V, int WRITE = 0, typename T>
INLINE void prefetch(const T *row) {
    for (int line = 0; line < V * LANES * (int)sizeof(T); line += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(row) + line, WRITE, 2);
}

// A vector of channels of a parameter (K, D) that may be missing.
INLINE vec load_optional(const float *p, int64_t at, int lanes) { return p ? load_some(p + at, lanes) : vec{}; }

// What the forward holds of a token of a segment, for one vector of channels.
struct ForwardToken {
    vec delta, input, out;
};

// A segment through the NB states from n on, for one vector of channels, the v-th of V. A, the states before and after it:
// (N, D).
template <int NB, int V>
INLINE void run_states(const Segment &segment, const float *A, const float *before, float *after, int64_t N, int64_t D,
                       int lanes, int64_t n, ForwardToken (*tokens)[V], int v) {
    vec h[NB], a[NB];
    for (int i = 0; i < NB; i++) {
        h[i] = load_some(before + (n + i) * D, lanes);
        a[i] = load_some(A + (n + i) * D, lanes) * splat(LOG2E);
    }
    for (int t = 0; t < segment.count; t++) {
        ForwardToken &token = tokens[t][v];
        vec sum = token.out;
        const vec d = token.delta, x = token.input;
        const float *b = segment.B + t * N + n, *c = segment.C + t * N + n;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            h[i] = exp2v(d * a[i]) * h[i] + x * splat(b[i]);
            sum = sum + h[i] * splat(c[i]);
        }
        token.out = sum;
    }
    for (int i = 0; i < NB; i++) store_some(after + (n + i) * D, h[i], lanes);
}

// A segment of direction k for V vectors of channels from `first` on; `total`, rows of `stride` floats from `first` on, adds
// up the directions.
template <int V, typename T>
INLINE void forward_vectors(const Scan &s, const Rows<T> &rows, const Segment &segment, int64_t k, int64_t first, int lanes,
                            const float *A, const float *before, float *after, float *total, int64_t stride) {
    const int64_t N = s.states, D = s.channels;
    const vec mean = splat(1.0f / s.directions);
    ForwardToken tokens[SEGMENT][V];
    vec skip[V], bias[V];
    for (int v = 0; v < V; v++) {
        skip[v] = load_optional(s.D, k * D + first + v * LANES, lanes);
        bias[v] = load_optional(s.delta_bias, k * D + first + v * LANES, lanes);
    }
    for (int t = 0; t < segment.count; t++) {
        if (t < segment.next_count) {
            const int64_t next = segment.next[t];
            prefetch<V>(rows.u + next * D + first);
            prefetch<V>(rows.delta + next * D + first);
            prefetch<V, 1>(total + next * stride);
        }
        for (int v = 0; v < V; v++) {
            const int64_t at = segment.order[t] * D + first + v * LANES;
            const vec raw = load_some(rows.delta + at, lanes) + bias[v];
            const vec u = load_some(rows.u + at, lanes);
            const vec delta = s.softplus ? softplus(raw) : raw;
            tokens[t][v] = {delta, delta * u, skip[v] * u};
        }
    }
    if (segment.next && after != before)
        for (int64_t n = 0; n < N; n++) prefetch<V, 1>(after + s.batch * s.directions * N * D + n * D + first);
    for (int v = 0; v < V; v++) {
        const int64_t c = first + v * LANES;
        int64_t n = 0;
        for (; n + BLOCK <= N; n += BLOCK)
            run_states<BLOCK>(segment, A + c, before + c, after + c, N, D, lanes, n, tokens, v);
        for (; n < N; n++) run_states<1>(segment, A + c, before + c, after + c, N, D, lanes, n, tokens, v);
    }
    for (int t = 0; t < segment.count; t++)
        for (int v = 0; v < V; v++) {
            float *to = total + segment.order[t] * stride + v * LANES;
            const vec sum = k ? load_some(to, lanes) : vec{};
            store_some(to, sum + tokens[t][v].out * mean, lanes);
        }
}

// All tokens of an image, for the channels from `first` up to `end`.
template <typename T>
void scan_forward_channels(const ScanForward &f, int64_t image, int64_t first, int64_t end) {
    const Scan &s = f.scan;
    const int64_t N = s.states, D = s.channels;
    T *y = static_cast<T *>(f.y) + image * s.length * D;
    constexpr bool sums = sizeof(T) != sizeof(float);  // directions are added up in float32
    const int64_t width = (end - first + LANES - 1) / LANES * LANES;
    static thread_local Scratch scratch;
    float *BC = scratch.of<float>(Segment::memory(N) + (sums ? s.length * width : 0));
    float *total;
    if constexpr (sums)
        total = BC + Segment::memory(N);
    else
        total = y + first;
    const int64_t stride = sums ? width : D;
    for (int64_t k = 0; k < s.directions; k++) {
        const Rows<T> rows(s, image, k);
        const float *A = s.A + k * N * D;
        float *state = f.saved + (image * s.directions + k) * N * D;
        for (int64_t n = 0; n < N; n++) std::memset(state + n * D + first, 0, (end - first) * sizeof(float));
        for (int64_t start = 0; start < s.length; start += SEGMENT) {
            const Segment segment(s, rows, start, start + SEGMENT, BC);
            float *after = f.keep ? state + s.batch * s.directions * N * D : state;
            int64_t c = first;
            for (; c + GROUP <= end; c += GROUP)
                forward_vectors<WIDE>(s, rows, segment, k, c, LANES, A, state, after, total + c - first, stride);
            for (; c < end; c += LANES) {
                const int lanes = end - c < LANES ? end - c : LANES;
                forward_vectors<1>(s, rows, segment, k, c, lanes, A, state, after, total + c - first, stride);
            }
            state = after;
        }
    }
    if constexpr (sums)
        for (int64_t t = 0; t < s.length; t++)
            for (int64_t c = first; c < end; c += LANES)
                store_some(y + t * D + c, load(total + t * stride + c - first), end - c < LANES ? end - c : LANES);
}

void scan_forward(const ScanForward &f, int64_t image, int64_t first, int64_t end) {
    [[maybe_unused]] const FlushTiny flush;
    if (!f.scan.half) return scan_forward_channels<float>(f, image, first, end);
    const int64_t fit = SUMS / (f.scan.length + 1) / GROUP * GROUP, width = fit > GROUP ? fit : GROUP;
    for (int64_t c = first; c < end; c += width)
        scan_forward_channels<bf16>(f, image, c, end - c < width ? end : c + width);
}

constexpr int NARROW = LANES == 16 ? 4 : 2;  // states that the backward holds in registers together

// What the backward holds of a token of a segment, for one vector of channels.
struct BackwardToken {
    vec delta, input, dy;
    vec from_decay, from_input;  // gradients of delta * A, times A, and of delta * u: sums over the states
    vec slope;                   // of softplus
};

// And for a group of them. All that belongs to a token lies together: far apart, its parts drive each other out of the
// first-level cache, in some processes and not in others, and the backward takes up to twice the time.
struct Step {
    vec decay[NARROW], before[NARROW];   // of a block of states; states before the token
    vec grad_B[NARROW], grad_C[NARROW];  // lane by lane, added up over the vectors
    BackwardToken of[WIDE];
};

// What the backward of a direction reads and writes beside the rows; (N, D) all but the last two.
struct BackwardStates {
    const float *A, *saved;  // saved: before the segment
    float *grad_A;
    float *grad_state;       // after the segment, then before it
    float *grad_B, *grad_C;  // (L, N)
};

// A segment forward and back through the NB states from n on, for the vector of channels from c on, the v-th of a group.
template <int NB>
INLINE void backward_states(const Segment &segment, const BackwardStates &states, int64_t N, int64_t D, int64_t c, int lanes,
                            int64_t n, int v, Step *steps) {
    vec a[NB], h[NB];
    for (int i = 0; i < NB; i++) {
        a[i] = load_some(states.A + (n + i) * D + c, lanes) * splat(LOG2E);
        h[i] = load_some(states.saved + (n + i) * D + c, lanes);
    }
    for (int t = 0; t < segment.count; t++) {  // the forward again
        Step &step = steps[t];
        const vec d = step.of[v].delta, x = step.of[v].input;
        const float *b = segment.B + t * N + n;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            const vec decay = exp2v(d * a[i]);
            step.before[i] = h[i];
            step.decay[i] = decay;
            h[i] = decay * h[i] + x * splat(b[i]);
        }
    }
    vec g[NB], ga[NB];
    for (int i = 0; i < NB; i++) {
        a[i] = load_some(states.A + (n + i) * D + c, lanes);
        g[i] = load_some(states.grad_state + (n + i) * D + c, lanes);
        ga[i] = load_some(states.grad_A + (n + i) * D + c, lanes);
    }
    for (int t = segment.count - 1; t >= 0; t--) {
        Step &step = steps[t];
        BackwardToken &token = step.of[v];
        const vec d = token.delta, x = token.input, dy = token.dy;
        const float *b = segment.B + t * N + n, *cs = segment.C + t * N + n;
        vec from_decay = token.from_decay, from_input = token.from_input;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            const vec grad = g[i] + dy * splat(cs[i]);
            step.grad_C[i] = (v ? step.grad_C[i] : vec{}) + dy * h[i];
            step.grad_B[i] = (v ? step.grad_B[i] : vec{}) + grad * x;
            from_input = from_input + grad * splat(b[i]);
            g[i] = grad * step.decay[i];
            h[i] = step.before[i];
            const vec exponent = g[i] * h[i];  // gradient of delta * A
            from_decay = from_decay + exponent * a[i];
            ga[i] = ga[i] + exponent * d;
        }
        token.from_decay = from_decay;
        token.from_input = from_input;
    }
    for (int i = 0; i < NB; i++) {
        store_some(states.grad_state + (n + i) * D + c, g[i], lanes);
        store_some(states.grad_A + (n + i) * D + c, ga[i], lanes);
    }
}

// The same for V vectors of channels from `first` on, and the gradients of B and C: set, or added to.
template <int V, int NB>
void backward_block(const Segment &segment, const BackwardStates &states, int64_t N, int64_t D, int64_t first, int lanes,
                    int64_t n, bool add, Step *steps) {
    for (int v = 0; v < V; v++) backward_states<NB>(segment, states, N, D, first + v * LANES, lanes, n, v, steps);
    constexpr int TOGETHER = LANES > 2 * NB ? LANES / (2 * NB) : 1;  // tokens whose rows are added up at once
    static_assert(SEGMENT % TOGETHER == 0 && 2 * NB <= LANES);
    for (int start = 0; start < segment.count; start += TOGETHER) {
        alignas(64) float sums[LANES];
        store(sums, lane_sums<LANES>([&](int row) {
                  const Step &step = steps[start + row / (2 * NB)];
                  const int i = row % (2 * NB);
                  return i < NB ? step.grad_B[i] : step.grad_C[i - NB];
              }));
        for (int t = start; t < start + TOGETHER && t < segment.count; t++) {
            float *to_B = states.grad_B + segment.order[t] * N + n, *to_C = states.grad_C + segment.order[t] * N + n;
            const float *from = sums + (t - start) * 2 * NB;
            for (int i = 0; i < NB; i++) to_B[i] = (add ? to_B[i] : 0) + from[i];
            for (int i = 0; i < NB; i++) to_C[i] = (add ? to_C[i] : 0) + from[NB + i];
        }
    }
}

// A segment of direction k for V vectors of channels from `first` on.
template <int V, typename T>
INLINE void backward_vectors(const ScanBackward &g, const Rows<T> &rows, const Segment &segment, const BackwardStates &states,
                             int64_t image, int64_t k, int64_t first, int lanes, bool add, Step *steps) {
    const Scan &s = g.scan;
    const int64_t N = s.states, D = s.channels, at = image * s.directions + k;
    const vec mean = splat(1.0f / s.directions);
    const T *grad_y = static_cast<const T *>(g.grad_y) + image * s.length * D + first;
    const int64_t tokens = (k * s.batch + image) * s.length * D + first;
    T *grad_u = static_cast<T *>(g.grad_u) + tokens, *grad_delta = static_cast<T *>(g.grad_delta) + tokens;
    vec skip[V], bias[V], grad_skip[V], grad_bias[V];
    for (int v = 0; v < V; v++) {
        const int64_t c = first + v * LANES;
        skip[v] = load_optional(s.D, k * D + c, lanes);
        bias[v] = load_optional(s.delta_bias, k * D + c, lanes);
        grad_skip[v] = load_some(g.grad_D + at * D + c, lanes);
        grad_bias[v] = load_some(g.grad_delta_bias + at * D + c, lanes);
    }
    for (int t = 0; t < segment.count; t++) {
        if (segment.next) {
            const int64_t next = segment.next[t] * D;
            prefetch<V>(rows.u + next + first);
            prefetch<V>(rows.delta + next + first);
            prefetch<V>(grad_y + next);
            prefetch<V, 1>(grad_u + next);
            prefetch<V, 1>(grad_delta + next);
        }
        for (int v = 0; v < V; v++) {
            BackwardToken &to = steps[t].of[v];
            const int64_t c = segment.order[t] * D + v * LANES;
            to.delta = load_some(rows.delta + first + c, lanes) + bias[v];
            to.slope = splat(1.0f);
            if (s.softplus) to.delta = softplus(to.delta, to.slope);
            to.input = to.delta * load_some(rows.u + first + c, lanes);
            to.dy = load_some(grad_y + c, lanes) * mean;
            to.from_decay = to.from_input = vec{};
        }
    }
    if (segment.next)
        for (int64_t n = 0; n < N; n++) prefetch<V>(states.saved - s.batch * s.directions * N * D + n * D + first);
    int64_t n = 0;
    for (; n + NARROW <= N; n += NARROW)
        backward_block<V, NARROW>(segment, states, N, D, first, lanes, n, add, steps);
    for (; n < N; n++) backward_block<V, 1>(segment, states, N, D, first, lanes, n, add, steps);
    for (int t = 0; t < segment.count; t++)
        for (int v = 0; v < V; v++) {
            const BackwardToken &from = steps[t].of[v];
            const int64_t c = segment.order[t] * D + v * LANES;
            const vec u = load_some(rows.u + first + c, lanes);
            const vec gd = (from.from_decay + from.from_input * u) * from.slope;
            grad_bias[v] = grad_bias[v] + gd;
            grad_skip[v] = grad_skip[v] + from.dy * u;
            store_some(grad_delta + c, gd, lanes);
            store_some(grad_u + c, from.from_input * from.delta + skip[v] * from.dy, lanes);
        }
    for (int v = 0; v < V; v++) {
        const int64_t c = at * D + first + v * LANES;
        store_some(g.grad_D + c, grad_skip[v], lanes);
        store_some(g.grad_delta_bias + c, grad_bias[v], lanes);
    }
}

// All tokens of a direction of an image, for the channels from `first` up to `end`, which have a part of grad_B and grad_C.
template <typename T>
void scan_backward_channels(const ScanBackward &g, int64_t image, int64_t k, int64_t part, int64_t first, int64_t end) {
    const Scan &s = g.scan;
    const int64_t N = s.states, D = s.channels, at = image * s.directions + k;
    const int64_t B = ((part * s.directions + k) * s.batch + image) * s.length * N;
    const Rows<T> rows(s, image, k);
    static thread_local Scratch scratch, step_memory;  // kept: new pages every time would cost more
    Step *steps = step_memory.of<Step>(SEGMENT);
    float *grad_state = scratch.of<float>(N * D + Segment::memory(N)), *BC = grad_state + N * D;
    float *grad_A = g.grad_A + at * N * D;
    const size_t bytes = (end - first) * sizeof(float);
    for (int64_t n = 0; n < N; n++) {
        std::memset(grad_A + n * D + first, 0, bytes);
        std::memset(grad_state + n * D + first, 0, bytes);
    }
    std::memset(g.grad_D + at * D + first, 0, bytes);
    std::memset(g.grad_delta_bias + at * D + first, 0, bytes);
    BackwardStates states = {s.A + k * N * D, nullptr, grad_A, grad_state, g.grad_B + B, g.grad_C + B};
    const int64_t last = (s.length - 1) / SEGMENT * SEGMENT;
    for (int64_t start = last; start >= 0; start -= SEGMENT) {
        const Segment segment(s, rows, start, start - SEGMENT, BC);
        states.saved = g.saved + (start / SEGMENT * s.batch * s.directions + at) * N * D;
        int64_t c = first;
        for (; c + GROUP <= end; c += GROUP)
            backward_vectors<WIDE>(g, rows, segment, states, image, k, c, LANES, c > first, steps);
        for (; c < end; c += LANES)
            backward_vectors<1>(g, rows, segment, states, image, k, c, end - c < LANES ? end - c : LANES, c > first, steps);
    }
}

void scan_backward(const ScanBackward &g, int64_t image, int64_t k, int64_t part, int64_t first, int64_t end) {
    [[maybe_unused]] const FlushTiny flush;
    g.scan.half ? scan_backward_channels<bf16>(g, image, k, part, first, end)
                : scan_backward_channels<float>(g, image, k, part, first, end);
}

template <int W>
struct Taps {  // of one vector of channels in one direction
    vec weight[W], bias;

    Taps(const float *weights, const float *biases, int64_t channels, int lanes) {  // (W, D), D
        for (int j = 0; j < W; j++) weight[j] = load_some(weights + j * channels, lanes);
        bias = load_some(biases, lanes);
    }
};

// Tokens from `start` up to `stop` of direction k for one vector of channels; x and out: of the image and the direction.
template <int W, typename T>
INLINE void conv_forward_vector(const Conv &c, int64_t k, int64_t start, int64_t stop, int64_t channel, int lanes,
                                const float *weight, const T *x, T *out) {
    const int64_t *order = c.orders + k * c.length;
    const Taps<W> taps(weight + channel, c.bias + k * c.channels + channel, c.channels, lanes);
    vec window[W];  // the last W tokens, the oldest first
    for (int j = 1; j < W; j++) {
        const int64_t t = start - W + j;
        window[j] = t >= 0 ? load_some(x + order[t] * c.row + channel, lanes) : vec{};
    }
    for (int64_t t = start; t < stop; t++) {
        for (int j = 0; j + 1 < W; j++) window[j] = window[j + 1];
        window[W - 1] = load_some(x + order[t] * c.row + channel, lanes);
        vec sum = taps.bias;
        for (int j = 0; j < W; j++) sum = sum + window[j] * taps.weight[j];
        store_some(out + order[t] * c.channels + channel, silu(sum), lanes);
    }
}

// All directions of an image, for the channels from `first` up to `end`.
template <int W, typename T>
void conv_forward_channels(const Conv &c, int64_t image, int64_t first, int64_t end) {
    static thread_local Scratch scratch;
    float *weight = scratch.of<float>(W * c.channels);
    const T *x = static_cast<const T *>(c.x) + image * c.length * c.row;
    for (int64_t k = 0; k < c.directions; k++) {
        transpose(c.weight + k * c.channels * W, c.channels, W, first, end, weight);
        const int64_t *order = c.orders + k * c.length;
        T *out = static_cast<T *>(c.out) + (k * c.batch + image) * c.length * c.channels;
        for (int64_t start = 0, stop; start < c.length; start = stop) {
            stop = start + SEGMENT < c.length ? start + SEGMENT : c.length;
            for (int64_t channel = first; channel < end; channel += LANES) {
                if ((channel - first) % GROUP == 0)
                    for (int64_t t = stop; t < stop + SEGMENT && t < c.length; t++) {
                        prefetch<WIDE>(x + order[t] * c.row + channel);
                        prefetch<WIDE, 1>(out + order[t] * c.channels + channel);
                    }
                const int lanes = end - channel < LANES ? end - channel : LANES;
                conv_forward_vector<W>(c, k, start, stop, channel, lanes, weight, x, out);
            }
        }
    }
}

// What the backward of a direction reads and writes.
template <typename T>
struct ConvGradients {
    const T *x, *grad;
    float *grad_x;
    const float *weight, *bias;  // (W, D), D
    float *grad_weight, *grad_bias;
};

// Tokens from `stop` down to `start`. `kept` from segment to segment: gradients before SiLU of the W tokens from `stop` on.
template <int W, typename T>
INLINE void conv_backward_vector(const Conv &c, int64_t k, int64_t start, int64_t stop, int64_t channel, int lanes,
                                 const ConvGradients<T> &to, vec *kept) {
    const int64_t *order = c.orders + k * c.length, D = c.channels;
    const auto input = [&](int64_t t) { return t >= 0 ? load_some(to.x + order[t] * c.row + channel, lanes) : vec{}; };
    const Taps<W> taps(to.weight + channel, to.bias + channel, D, lanes);
    vec inputs[W], later[W];  // tokens t - W + 1 to t; gradients before SiLU of tokens t to t + W - 1
    vec grad_weight[W], grad_bias = load_some(to.grad_bias + channel, lanes);
    for (int j = 0; j < W; j++) {
        inputs[j] = input(stop - W + j);
        later[j] = kept[j];
        grad_weight[j] = load_some(to.grad_weight + j * D + channel, lanes);
    }
    for (int64_t t = stop - 1; t >= start; t--) {
        vec sum = taps.bias;
        for (int j = 0; j < W; j++) sum = sum + inputs[j] * taps.weight[j];
        const vec gate = sigmoid(sum);
        const vec g = load_some(to.grad + order[t] * D + channel, lanes) * gate * (splat(1.0f) + sum * (splat(1.0f) - gate));
        grad_bias = grad_bias + g;
        for (int j = W - 1; j > 0; j--) later[j] = later[j - 1];
        later[0] = g;
        vec to_x = {};
        for (int j = 0; j < W; j++) {
            grad_weight[j] = grad_weight[j] + g * inputs[j];
            to_x = to_x + later[j] * taps.weight[W - 1 - j];
        }
        float *grad_x = to.grad_x + order[t] * D + channel;
        store_some(grad_x, k ? load_some(grad_x, lanes) + to_x : to_x, lanes);
        for (int j = W - 1; j > 0; j--) inputs[j] = inputs[j - 1];
        inputs[0] = input(t - W);
    }
    store_some(to.grad_bias + channel, grad_bias, lanes);
    for (int j = 0; j < W; j++) {
        kept[j] = later[j];
        store_some(to.grad_weight + j * D + channel, grad_weight[j], lanes);
    }
}

// All directions of an image from the last token to the first; the same channels.
template <int W, typename T>
void conv_backward_channels(const Conv &c, int64_t image, int64_t first, int64_t end) {
    const int64_t D = c.channels, vectors = (end - first + LANES - 1) / LANES;
    const size_t bytes = (end - first) * sizeof(float);
    static thread_local Scratch scratch;
    vec *later = scratch.of<vec>(vectors * W + 2 * W * (D / LANES + 1));
    float *weight = reinterpret_cast<float *>(later + vectors * W), *grad_weight = weight + W * D;
    for (int64_t k = 0; k < c.directions; k++) {
        transpose(c.weight + k * D * W, D, W, first, end, weight);
        const int64_t *order = c.orders + k * c.length, at = image * c.directions + k;
        const ConvGradients<T> to = {static_cast<const T *>(c.x) + image * c.length * c.row,
                                     static_cast<const T *>(c.grad) + (k * c.batch + image) * c.length * D,
                                     c.grad_x + image * c.length * D,
                                     weight,
                                     c.bias + k * D,
                                     grad_weight,
                                     c.grad_bias + at * D};
        for (int j = 0; j < W; j++) std::memset(grad_weight + j * D + first, 0, bytes);
        std::memset(to.grad_bias + first, 0, bytes);
        std::memset(static_cast<void *>(later), 0, vectors * W * sizeof(vec));
        for (int64_t stop = c.length, start; stop > 0; stop = start) {
            start = stop > SEGMENT ? stop - SEGMENT : 0;
            for (int64_t channel = first; channel < end; channel += LANES) {
                if ((channel - first) % GROUP == 0)
                    for (int64_t t = start - 1; t >= 0 && t >= start - SEGMENT; t--) {
                        prefetch<WIDE>(to.grad + order[t] * D + channel);
                        if (t >= W) prefetch<WIDE>(to.x + order[t - W] * c.row + channel);
                        prefetch<WIDE, 1>(to.grad_x + order[t] * D + channel);
                    }
                conv_backward_vector<W>(c, k, start, stop, channel, end - channel < LANES ? end - channel : LANES, to,
                                        later + (channel - first) / LANES * W);
            }
        }
        transpose_back(grad_weight, D, W, first, end, c.grad_weight + at * D * W);
    }
}

typedef void (*ConvChannels)(const Conv &, int64_t image, int64_t first, int64_t end);
// By the number of taps.
template <typename T>
constexpr ConvChannels CONV_FORWARD[] = {
    conv_forward_channels<1, T>, conv_forward_channels<2, T>, conv_forward_channels<3, T>, conv_forward_channels<4, T>,
    conv_forward_channels<5, T>, conv_forward_channels<6, T>, conv_forward_channels<7, T>, conv_forward_channels<8, T>};
template <typename T>
constexpr ConvChannels CONV_BACKWARD[] = {
    conv_backward_channels<1, T>, conv_backward_channels<2, T>, conv_backward_channels<3, T>, conv_backward_channels<4, T>,
    conv_backward_channels<5, T>, conv_backward_channels<6, T>, conv_backward_channels<7, T>, conv_backward_channels<8, T>};

void conv_forward(const Conv &c, int64_t image, int64_t first, int64_t end) {
    (c.half ? CONV_FORWARD<bf16> : CONV_FORWARD<float>)[c.taps - 1](c, image, first, end);
}

void conv_backward(const Conv &c, int64_t image, int64_t first, int64_t end) {
    (c.half ? CONV_BACKWARD<bf16> : CONV_BACKWARD<float>)[c.taps - 1](c, image, first, end);
}

// Calls with the first channel of each vector of a row and the number of its lanes.
template <typename Vector>
INLINE void each_vector(int64_t channels, const Vector &vector) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) vector(c, LANES);
    if (c < channels) vector(c, int(channels - c));
}

template <typename T>
void gate_rows(const Gate &g, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; r++) {
        const T *x = static_cast<const T *>(g.x) + r * g.row_x, *z = static_cast<const T *>(g.z) + r * g.row_z;
        const T *grad = g.grad ? static_cast<const T *>(g.grad) + r * g.row_grad : nullptr;
        T *out = static_cast<T *>(g.out) + r * g.channels, *grad_z = static_cast<T *>(g.grad_z) + (grad ? r * g.channels : 0);
        each_vector(g.channels, [&](int64_t c, int lanes) {
            const vec gate = load_some(z + c, lanes), slope = sigmoid(gate), value = load_some(x + c, lanes);
            if (grad) {
                const vec by = load_some(grad + c, lanes);
                store_some(grad_z + c, by * value * slope * (splat(1.0f) + gate * (splat(1.0f) - slope)), lanes);
                store_some(out + c, by * (gate * slope), lanes);
            } else {
                store_some(out + c, value * (gate * slope), lanes);
            }
        });
    }
}

void gate(const Gate &g, int64_t, int64_t first, int64_t end) { (g.half ? gate_rows<bf16> : gate_rows<float>)(g, first, end); }

// Of the first lanes; zeros after them.
INLINE vec first_lanes(vec x, int lanes) {
    for (int i = lanes; i < LANES; i++) x[i] = 0;
    return x;
}

INLINE float lane_sum(vec x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

void norm(const Norm &n, int64_t, int64_t first, int64_t end) {
    const float width = n.channels;
    for (int64_t r = first; r < end; r++) {
        const float *x = n.x + r * n.row_x;
        vec sum = {};
        if (n.branch) {
            const bf16 *branch = static_cast<const bf16 *>(n.branch) + r * n.row_branch;
            float *total = n.total + r * n.channels;
            each_vector(n.channels, [&](int64_t c, int lanes) {
                const vec value = load_some(x + c, lanes) + load_some(branch + c, lanes);
                store_some(total + c, value, lanes);
                sum = sum + value;
            });
            x = total;
        } else {
            each_vector(n.channels, [&](int64_t c, int lanes) { sum = sum + load_some(x + c, lanes); });
        }
        const float mean = lane_sum(sum) / width;
        vec squares = {};
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec d = first_lanes(load_some(x + c, lanes) - splat(mean), lanes);
            squares = squares + d * d;
        });
        const float scale = 1 / __builtin_sqrtf(lane_sum(squares) / width + n.eps);
        bf16 *out = static_cast<bf16 *>(n.out) + r * n.channels;
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec normed = (load_some(x + c, lanes) - splat(mean)) * splat(scale);
            store_some(out + c, normed * load_some(n.weight + c, lanes) + load_some(n.bias + c, lanes), lanes);
        });
        n.mean[r] = mean;
        n.scale[r] = scale;
    }
}

void norm_backward(const NormBackward &n, int64_t part, int64_t first, int64_t end) {
    const float width = n.channels;
    float *grad_weight = n.sums + part * 2 * n.channels, *grad_bias = grad_weight + n.channels;
    std::memset(grad_weight, 0, 2 * n.channels * sizeof(float));
    for (int64_t r = first; r < end; r++) {
        const float *x = n.x + r * n.row_x, *total = n.grad_total ? n.grad_total + r * n.row_total : nullptr;
        const bf16 *grad = static_cast<const bf16 *>(n.grad) + r * n.row_grad;
        const vec mean = splat(n.mean[r]), scale = splat(n.scale[r]);
        vec sum = {}, product = {};
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec g = load_some(grad + c, lanes);
            const vec normed = first_lanes((load_some(x + c, lanes) - mean) * scale, lanes);
            store_some(grad_weight + c, load_some(grad_weight + c, lanes) + g * normed, lanes);
            store_some(grad_bias + c, load_some(grad_bias + c, lanes) + g, lanes);
            const vec weighted = g * load_some(n.weight + c, lanes);
            sum = sum + weighted;
            product = product + weighted * normed;
        });
        const vec a = splat(lane_sum(sum) / width), b = splat(lane_sum(product) / width);
        float *grad_x = n.grad_x + r * n.channels;
        bf16 *grad_branch = n.grad_branch ? static_cast<bf16 *>(n.grad_branch) + r * n.channels : nullptr;
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec normed = (load_some(x + c, lanes) - mean) * scale;
            vec to_x = (load_some(grad + c, lanes) * load_some(n.weight + c, lanes) - a - normed * b) * scale;
            if (total) to_x = to_x + load_some(total + c, lanes);
            store_some(grad_x + c, to_x, lanes);
            if (grad_branch) store_some(grad_branch + c, to_x, lanes);
        });
    }
}

// Eight chains of exponentials in registers, in the form that is fastest alone; nothing is read or written.
float exponentials(int64_t repeats) {
    vec x[CHAINS], sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        x[i] = splat(-0.01f * (i + 1));
        sum[i] = vec{};
    }
    for (int64_t r = 0; r < repeats; r++)
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = sum[i] + exp2_polynomial(x[i]);
            x[i] = x[i] * splat(0.9999f);  // or the compiler takes it out of the loop
        }
    float total = 0;
    for (int i = 0; i < CHAINS; i++)
        for (int lane = 0; lane < LANES; lane++) total += sum[i][lane];
    return total;
}

constexpr Kernels KERNELS = {LANES, GROUP, scan_forward, scan_backward, conv_forward, conv_backward,
                             gate,  norm,  norm_backward, exponentials};

}  // namespace

#if defined(__AVX512F__)
extern "C" const Kernels *arm_kernels_avx512() { return &KERNELS; }
#elif defined(__AVX2__)
extern "C" const Kernels *arm_kernels_avx2() { return &KERNELS; }
#else
extern "C" const Kernels *arm_kernels_plain() { return &KERNELS; }
#endif
