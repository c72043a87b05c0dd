// Backward of the selective scan: recomputes each segment from its saved state, then goes through it in reverse.
// Legend: kernels.h.
#pragma once

#include "rows.h"

namespace {

constexpr int NARROW = LANES == 16 ? 4 : 2;  // states held in registers at a time

// What the backward keeps per token of a segment, for one vector of channels.
struct BackwardToken {
    vec delta, input, dy;
    vec from_decay, from_input;  // gradients of delta * A, times A, and of delta * u: sums over the states
    vec slope;                   // of softplus
};

// The same for a group of vectors. All values of a token are adjacent in memory: otherwise they evict each other from
// the L1 cache in some processes, and the backward takes up to twice as long.
struct Step {
    vec decay[NARROW], before[NARROW];   // of a block of states; states before the token
    vec grad_B[NARROW], grad_C[NARROW];  // per lane, summed over the vectors
    BackwardToken of[WIDE];
};

// What the backward of a direction reads and writes besides the rows; all (N, D) except for the last two.
struct BackwardStates {
    const float *A, *saved;  // saved: before the segment
    float *grad_A;
    float *grad_state;       // after the segment, then before it
    float *grad_B, *grad_C;  // (L, N)
};

// Recomputes states n to n + NB of a segment, then runs their backward, for the vector of channels from c on, number v
// of a group.
template <int NB>
INLINE void backward_states(const Segment &segment, const BackwardStates &states, int64_t N, int64_t D, int64_t c, int lanes,
                            int64_t n, int v, Step *steps) {
    vec a[NB], h[NB];
    for (int i = 0; i < NB; i++) {
        a[i] = limited(load_some(states.A + (n + i) * D + c, lanes) * splat(LOG2E), FAR);
        h[i] = load_some(states.saved + (n + i) * D + c, lanes);
    }
    for (int t = 0; t < segment.count; t++) {  // recompute the forward
        Step &step = steps[t];
        const vec d = at_most(step.of[v].delta, splat(FAR)), x = step.of[v].input;
        const float *b = segment.B + t * N + n;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            const vec decay = exp2_product(d, a[i]);
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

// The same for V vectors of channels from `first` on; sets the gradients of B and C or, with `add`, adds to them.
template <int V, int NB>
void backward_block(const Segment &segment, const BackwardStates &states, int64_t N, int64_t D, int64_t first, int lanes,
                    int64_t n, bool add, Step *steps) {
    for (int v = 0; v < V; v++) backward_states<NB>(segment, states, N, D, first + v * LANES, lanes, n, v, steps);
    constexpr int TOGETHER = LANES > 2 * NB ? LANES / (2 * NB) : 1;  // tokens whose rows are summed at once
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

// Runs the backward of a segment of direction k for V vectors of channels from `first` on.
template <int V, typename T>
INLINE void backward_vectors(const ScanBackward &g, const Rows<T> &rows, const Segment &segment, const BackwardStates &states,
                             int64_t image, int64_t k, int64_t first, int lanes, bool add, Step *steps) {
    const Scan &s = g.scan;
    const int64_t N = s.states, D = s.channels, at = image * s.directions + k;
    const vec share = splat(1.0f / s.divisor);
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
            to.dy = load_some(grad_y + c, lanes) * share;
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

// Runs the backward of a direction of an image for channels `first` to `end`, which own one part of grad_B and grad_C.
template <typename T>
void scan_backward_channels(const ScanBackward &g, int64_t image, int64_t k, int64_t part, int64_t first, int64_t end) {
    const Scan &s = g.scan;
    const int64_t N = s.states, D = s.channels, at = image * s.directions + k;
    const int64_t B = ((part * s.directions + k) * s.batch + image) * s.length * N;
    const Rows<T> rows(s, image, k);
    Step *steps = scratch<Step>(1, SEGMENT);
    float *grad_state = scratch<float>(0, N * D + Segment::memory(N)), *BC = grad_state + N * D;
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

}  // namespace
