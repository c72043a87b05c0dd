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

// Runs a segment of direction k for V vectors of channels from `first` on, and adds its output to `total`, the sum over
// the directions (rows of `stride` floats, from `first` on).
template <int V, typename T>
INLINE void forward_vectors(const Scan &s, const Rows<T> &rows, const Segment &segment, int64_t k, int64_t first, int lanes,
                            const float *A, const float *before, float *after, float *total, int64_t stride) {
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
            prefetch<V>(rows.u + next * D + first);
            prefetch<V>(rows.delta + next * D + first);
            prefetch<V, 1>(total + next * stride);
        }
        for (int v = 0; v < V; v++) {
            const int64_t at = segment.order[t] * D + first + v * LANES;
            const vec raw = load_some(rows.delta + at, lanes) + bias[v];
            const vec u = load_some(rows.u + at, lanes);
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
            float *to = total + segment.order[t] * stride + v * LANES;
            const vec sum = k ? load_some(to, lanes) : vec{};
            store_some(to, sum + tokens[t][v].out * share, lanes);
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

}  // namespace
