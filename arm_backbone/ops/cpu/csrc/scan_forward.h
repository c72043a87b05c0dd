// Forward of the selective scan. Legend: kernels.h.
#pragma once

#include "rows.h"

namespace {

constexpr int BLOCK = 4;           // states held in registers at a time
constexpr int64_t SUMS = 1 << 21;  // about the size, in floats, of a thread's buffer for sums of bfloat16 directions

// What the forward keeps per token of a segment, for one vector of channels.
struct ForwardToken {
    vec delta, input, out;  // delta: at most FAR
};

// Runs states n to n + NB through a segment, for vector v of V. A and the states before and after are (N, D).
template <int NB, int V>
INLINE void run_states(const Segment &segment, const float *A, const float *before, float *after, int64_t N, int64_t D,
                       int lanes, int64_t n, ForwardToken (*tokens)[V], int v) {
    vec h[NB], a[NB];
    for (int i = 0; i < NB; i++) {
        h[i] = load_some(before + (n + i) * D, lanes);
        a[i] = limited(load_some(A + (n + i) * D, lanes) * splat(LOG2E), FAR);
    }
    for (int t = 0; t < segment.count; t++) {
        ForwardToken &token = tokens[t][v];
        vec sum = token.out;
        const vec d = token.delta, x = token.input;
        const float *b = segment.B + t * N + n, *c = segment.C + t * N + n;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            h[i] = exp2_product(d, a[i]) * h[i] + x * splat(b[i]);
            sum = sum + h[i] * splat(c[i]);
        }
        token.out = sum;
    }
    for (int i = 0; i < NB; i++) store_some(after + (n + i) * D, h[i], lanes);
}

// u and delta of a segment for a group of channels: rows of `stride` numbers, number order[t] for token t, or t in a tile,
// which has no order. Rows of the next segment are prefetched, except from a tile.
template <typename T>
struct Inputs {
    const T *u, *delta;
    const int64_t *order;
    int64_t stride;
};

constexpr int TILE = 2 * SEGMENT;  // tokens that are transposed together: whole cache lines of each channel
static_assert(TILE % LANES == 0);

// Copies up to TILE tokens from `start` on, which lie as (D, L) from the first of the channels on, to rows of `width`
// floats; lanes of the last vector beyond the channels are zero. The next channels are prefetched: they lie too far
// apart for the processor to predict them.
template <typename T>
void load_tile(const T *from, int64_t length, int64_t start, int64_t channels, float *tile, int64_t width) {
    for (int64_t c = 0; c < channels; c += LANES) {
        for (int i = 0; i < LANES; i++)
            for (int line = 0; line < TILE * (int)sizeof(T); line += 64)
                __builtin_prefetch(reinterpret_cast<const char *>(from + (c + LANES + i) * length + start) + line, 0, 3);
        for (int t = 0; t < TILE && start + t < length; t += LANES) {
            const int64_t left = length - start - t;
            const int tokens = left < LANES ? left : LANES;
            vec rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = c + i < channels ? load_some(from + (c + i) * length + start + t, tokens) : vec{};
            transpose_vectors(rows);
            for (int i = 0; i < tokens; i++) store(tile + (t + i) * width + c, rows[i]);
        }
    }
}

// The sum over the directions, in rows of `stride` floats, and the gate that the last direction applies to it, or null.
struct Total {
    float *sum;
    int64_t stride;
    const float *gate;
    int64_t row_gate;

    Total from(int64_t channel) const { return {sum + channel, stride, gate ? gate + channel : nullptr, row_gate}; }
};

// Runs a segment of direction k for V vectors of channels from `first` on, and adds its output to `total`, which starts
// with the first of these channels.
template <int V, typename T>
INLINE void forward_vectors(const Scan &s, const Inputs<T> &in, const Segment &segment, int64_t k, int64_t first, int lanes,
                            const float *A, const float *before, float *after, const Total &total) {
    const int64_t N = s.states, D = s.channels;
    const vec share = splat(1.0f / s.divisor);
    ForwardToken tokens[SEGMENT][V];
    vec skip[V], bias[V];
    for (int v = 0; v < V; v++) {
        skip[v] = load_optional(s.D, k * D + first + v * LANES, lanes);
        bias[v] = load_optional(s.delta_bias, k * D + first + v * LANES, lanes);
    }
    for (int t = 0; t < segment.count; t++) {
        if (t < segment.next_count) {
            const int64_t next = segment.next[t];
            if (in.order) {
                prefetch<V>(in.u + next * in.stride);
                prefetch<V>(in.delta + next * in.stride);
            }
            prefetch<V, 1>(total.sum + next * total.stride);
            if (total.gate) prefetch<V>(total.gate + next * total.row_gate);
        }
        for (int v = 0; v < V; v++) {
            const int64_t at = (in.order ? in.order[t] : t) * in.stride + v * LANES;
            const vec raw = load_some(in.delta + at, lanes) + bias[v];
            const vec u = load_some(in.u + at, lanes);
            const vec delta = s.softplus ? softplus(raw) : raw;
            tokens[t][v] = {at_most(delta, splat(FAR)), delta * u, skip[v] * u};
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
            float *to = total.sum + segment.order[t] * total.stride + v * LANES;
            vec sum = tokens[t][v].out * share;
            if (k) sum = sum + load_some(to, lanes);
            if (total.gate) sum = sum * silu(load_some(total.gate + segment.order[t] * total.row_gate + v * LANES, lanes));
            store_some(to, sum, lanes);
        }
}

// Scans all tokens and directions of an image for channels `first` to `end`.
template <typename T>
void scan_forward_channels(const ScanForward &f, int64_t image, int64_t first, int64_t end) {
    const Scan &s = f.scan;
    const int64_t N = s.states, D = s.channels;
    T *y = static_cast<T *>(f.y) + image * s.length * D;
    constexpr bool sums = sizeof(T) != sizeof(float);  // sum the directions in float32
    const int64_t width = (end - first + LANES - 1) / LANES * LANES;
    float *BC = scratch<float>(0, Segment::memory(N) + (sums ? s.length * width : 0));
    const T *gate = f.gate ? static_cast<const T *>(f.gate) + image * s.length * f.row_gate + first : nullptr;
    float *tile = s.tokens_last ? scratch<float>(1, 2 * TILE * width) : nullptr;  // of u, then of delta
    for (int64_t k = 0; k < s.directions; k++) {
        const Rows<T> rows(s, image, k);
        const float *A = s.A + k * N * D;
        Total total;
        if constexpr (sums)
            total = {BC + Segment::memory(N), width, nullptr, 0};
        else
            total = {y + first, D, k + 1 < s.directions ? nullptr : gate, f.row_gate};
        float *state = f.saved + (image * s.directions + k) * N * D;
        for (int64_t n = 0; n < N; n++) std::memset(state + n * D + first, 0, (end - first) * sizeof(float));
        for (int64_t start = 0; start < s.length; start += SEGMENT) {
            const Segment segment(s, rows, start, start + SEGMENT, BC);
            float *after = f.keep ? state + s.batch * s.directions * N * D : state;
            const auto group = [&](int64_t c, const auto &in) {
                if (c + GROUP <= end) {
                    forward_vectors<WIDE>(s, in, segment, k, c, LANES, A, state, after, total.from(c - first));
                    return;
                }
                auto part = in;
                for (int64_t v = c; v < end; v += LANES, part.u += LANES, part.delta += LANES) {
                    const int lanes = end - v < LANES ? end - v : LANES;
                    forward_vectors<1>(s, part, segment, k, v, lanes, A, state, after, total.from(v - first));
                }
            };
            if (s.tokens_last && start % TILE == 0) {
                load_tile(rows.u + first * s.length, s.length, start, end - first, tile, width);
                load_tile(rows.delta + first * s.length, s.length, start, end - first, tile + TILE * width, width);
            }
            for (int64_t c = first; c < end; c += GROUP) {
                if (s.tokens_last) {
                    const float *from = tile + start % TILE * width + c - first;
                    group(c, Inputs<float>{from, from + TILE * width, nullptr, width});
                } else {
                    group(c, Inputs<T>{rows.u + c, rows.delta + c, segment.order, D});
                }
            }
            state = after;
        }
    }
    if constexpr (sums)
        for (int64_t t = 0; t < s.length; t++)
            for (int64_t c = first; c < end; c += LANES) {
                const int lanes = end - c < LANES ? end - c : LANES;
                T *to = y + t * D + c;
                store_some(to, load(BC + Segment::memory(N) + t * width + c - first), lanes);
                if (gate)  // after rounding, as the gate kernel does
                    store_some(to, load_some(to, lanes) * silu(load_some(gate + t * f.row_gate + c - first, lanes)), lanes);
            }
}

void scan_forward(const ScanForward &f, int64_t image, int64_t first, int64_t end) {
    [[maybe_unused]] const FlushTiny flush;
    if (!f.scan.half) return scan_forward_channels<float>(f, image, first, end);
    const int64_t fit = SUMS / (f.scan.length + 1) / GROUP * GROUP, width = fit > GROUP ? fit : GROUP;
    for (int64_t c = first; c < end; c += width)
        scan_forward_channels<bf16>(f, image, c, end - c < width ? end : c + width);
}

}  // namespace
