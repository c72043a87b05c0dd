// Selective scan and causal convolution on vectors of channels; compiled once for each instruction set.
//
// Channels-last, so that a token is a row of memory: vectors run over channels, a scan order is a sequence of row numbers,
// and the recurrence needs no reduction. Legend: kernels.h.

#include "kernels.h"

#include "vector.h"

namespace {

constexpr int BLOCK = LANES == 16 ? 8 : 4;  // states held in registers together
constexpr int WIDE = 4;                     // vectors of a group
constexpr int GROUP = WIDE * LANES;         // channels of a group

// Memory of a thread. Nothing of the standard library: its templates, compiled for several instruction sets, would be merged
// into one by the linker.
struct Scratch {
    char *memory = nullptr;
    int64_t size = 0;

    vec *of(int64_t vectors) {
        const int64_t wanted = (vectors + 1) * sizeof(vec);
        if (wanted > size) {
            delete[] memory;
            memory = new char[wanted];
            size = wanted;
        }
        return reinterpret_cast<vec *>((reinterpret_cast<uintptr_t>(memory) + sizeof(vec) - 1) / sizeof(vec) * sizeof(vec));
    }

    ~Scratch() { delete[] memory; }
};

template <typename T>
struct Rows {  // of one direction of one image
    const T *u, *delta;
    const float *B, *C;
    const int64_t *order;
    int64_t channels, states;

    Rows(const Scan &s, int64_t image, int64_t direction) : channels(s.channels), states(s.states) {
        const int64_t at = image * s.directions + direction;
        u = static_cast<const T *>(s.u) + at * s.length * s.channels;
        delta = static_cast<const T *>(s.delta) + at * s.length * s.channels;
        B = s.B + at * s.length * s.states;
        C = s.C + at * s.length * s.states;
        order = s.orders + direction * s.length;
    }
};

// Rows of the tokens of the next segment, into the second-level cache: they lie a row apart, where no hardware looks ahead.
template <typename T>
INLINE void prefetch(const T *row, int vectors) {
    for (int line = 0; line < vectors * LANES * (int)sizeof(T); line += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(row) + line, 0, 2);
}

// `count` tokens through NB states from state n on: h is read and written, out is added to.
template <int NB>
INLINE void run_states(const vec *A, const float *const *B, const float *const *C, int64_t n, const vec *delta, const vec *input,
                       int count, vec *h_memory, vec *out) {
    vec h[NB], a[NB];
    for (int i = 0; i < NB; i++) {
        h[i] = h_memory[i];
        a[i] = A[i];
    }
    for (int t = 0; t < count; t++) {
        vec sum = out[t];
        const vec d = delta[t], x = input[t];
        const float *b = B[t] + n, *c = C[t] + n;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            h[i] = exp2v(d * a[i]) * h[i] + x * splat(b[i]);
            sum = sum + h[i] * splat(c[i]);
        }
        out[t] = sum;
    }
    for (int i = 0; i < NB; i++) h_memory[i] = h[i];
}

// V vectors of channels from `first` on, in all directions; `total` adds them up, (L) rows of `stride` floats.
template <typename T, int V>
void forward_vectors(const ScanForward &f, int64_t image, int64_t first, int some, float *total, int64_t stride, vec *scratch) {
    const Scan &s = f.scan;
    const int lanes = V == WIDE ? LANES : some;
    const int64_t N = s.states;
    const vec mean = splat(1.0f / s.directions);
    const int64_t entry = s.batch * s.directions * N * s.channels;  // of `saved`, one segment
    vec *A = scratch, *h = A + V * N;  // (V, N)
    vec delta[V][SEGMENT], input[V][SEGMENT], out[V][SEGMENT];
    const float *B[SEGMENT], *C[SEGMENT];
    for (int64_t k = 0; k < s.directions; k++) {
        const Rows<T> rows(s, image, k);
        vec skip[V], bias[V];
        for (int v = 0; v < V; v++) {
            const int64_t c = k * s.channels + first + v * LANES;
            skip[v] = s.D ? load_some(s.D + c, lanes) : vec{};
            bias[v] = s.delta_bias ? load_some(s.delta_bias + c, lanes) : vec{};
            for (int64_t n = 0; n < N; n++) {
                A[v * N + n] = load_some(s.A + (k * N + n) * s.channels + first + v * LANES, lanes) * splat(LOG2E);
                h[v * N + n] = vec{};
            }
        }
        float *state = f.saved + (image * s.directions + k) * N * s.channels + first;
        const auto save = [&] {
            for (int64_t n = 0; n < N; n++)
                for (int v = 0; v < V; v++) store_some(state + n * s.channels + v * LANES, h[v * N + n], lanes);
        };
        for (int64_t start = 0; start < s.length; start += SEGMENT) {
            const int count = s.length - start < SEGMENT ? s.length - start : SEGMENT;
            if (f.keep) {
                save();
                state += entry;
            }
            for (int t = 0; t < count; t++) {
                const int64_t token = rows.order[start + t];
                if (start + t + SEGMENT < s.length) {
                    const int64_t next = rows.order[start + t + SEGMENT];
                    prefetch(rows.u + next * s.channels + first, V);
                    prefetch(rows.delta + next * s.channels + first, V);
                    if (k) prefetch(total + next * stride, V);
                }
                for (int v = 0; v < V; v++) {
                    const int64_t at = token * s.channels + first + v * LANES;
                    const vec raw = load_some(rows.delta + at, lanes) + bias[v];
                    const vec u = load_some(rows.u + at, lanes);
                    delta[v][t] = s.softplus ? softplus(raw) : raw;
                    input[v][t] = delta[v][t] * u;
                    out[v][t] = skip[v] * u;
                }
                B[t] = rows.B + token * N;
                C[t] = rows.C + token * N;
            }
            for (int v = 0; v < V; v++) {
                int64_t n = 0;
                for (; n + BLOCK <= N; n += BLOCK)
                    run_states<BLOCK>(A + v * N + n, B, C, n, delta[v], input[v], count, h + v * N + n, out[v]);
                for (; n < N; n++) run_states<1>(A + v * N + n, B, C, n, delta[v], input[v], count, h + v * N + n, out[v]);
            }
            for (int t = 0; t < count; t++)
                for (int v = 0; v < V; v++) {
                    float *to = total + rows.order[start + t] * stride + v * LANES;
                    const vec before = k ? load_some(to, lanes) : vec{};
                    store_some(to, before + out[v][t] * mean, lanes);
                }
        }
        save();
    }
}

// V vectors of channels from `first` on, of the type T of the inputs.
template <typename T, int V>
void scan_forward_vectors(const ScanForward &f, int64_t image, int64_t first, int lanes) {
    const Scan &s = f.scan;
    static thread_local Scratch memory, sums;
    vec *scratch = memory.of(2 * V * s.states);
    T *y = static_cast<T *>(f.y) + image * s.length * s.channels + first;
    if constexpr (sizeof(T) == sizeof(float)) {
        forward_vectors<T, V>(f, image, first, lanes, y, s.channels, scratch);
    } else {  // directions are added up in float32
        vec *total = sums.of(s.length * V);
        forward_vectors<T, V>(f, image, first, lanes, reinterpret_cast<float *>(total), V * LANES, scratch);
        for (int64_t t = 0; t < s.length; t++)
            for (int v = 0; v < V; v++) store_some(y + t * s.channels + v * LANES, total[t * V + v], lanes);
    }
}

template <typename T>
void scan_forward_group(const ScanForward &f, int64_t image, int64_t group) {
    const int64_t first = group * GROUP, rest = f.scan.channels - first;
    if (rest >= GROUP)
        scan_forward_vectors<T, WIDE>(f, image, first, LANES);
    else
        for (int64_t c = 0; c < rest; c += LANES)
            scan_forward_vectors<T, 1>(f, image, first + c, rest - c < LANES ? rest - c : LANES);
}

void scan_forward(const ScanForward &f, int64_t image, int64_t group) {
    [[maybe_unused]] const FlushTiny flush;
    f.half ? scan_forward_group<bf16>(f, image, group) : scan_forward_group<float>(f, image, group);
}

// What the backward keeps of the tokens of a segment, for one vector of channels.
struct Tokens {
    vec raw[SEGMENT], delta[SEGMENT], u[SEGMENT], input[SEGMENT], dy[SEGMENT];
    vec from_decay[SEGMENT], from_input[SEGMENT];  // gradients of delta * A, times A, and of delta * u: sums over the states
};

constexpr int NARROW = LANES == 16 ? 4 : 2;  // states that the backward holds in registers together

// Memory of a block of states in the backward, small enough for the first-level cache.
struct BlockMemory {
    vec decays[SEGMENT][NARROW], before[SEGMENT][NARROW];
    vec sums[SEGMENT * 2 * NARROW + LANES];  // (SEGMENT, 2, NB): gradients of B and of C, lane by lane; and room to read
};

// A segment's tokens forward and back through NB states from n on, for one vector of channels. `first`: of the channels.
template <int NB>
INLINE void backward_states(const vec *A, const vec *saved, vec *grad_state, vec *grad_A, const float *const *B,
                            const float *const *C, int64_t n, int count, bool first, Tokens &tokens, BlockMemory &memory) {
    vec a[NB], h[NB];
    for (int i = 0; i < NB; i++) {
        a[i] = A[i] * splat(LOG2E);
        h[i] = saved[i];
    }
    for (int t = 0; t < count; t++) {  // the forward again
        const vec d = tokens.delta[t], x = tokens.input[t];
        const float *b = B[t] + n;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            const vec decay = exp2v(d * a[i]);
            memory.before[t][i] = h[i];
            memory.decays[t][i] = decay;
            h[i] = decay * h[i] + x * splat(b[i]);
        }
    }
    vec g[NB], ga[NB];
    for (int i = 0; i < NB; i++) {
        a[i] = A[i];
        g[i] = grad_state[i];
        ga[i] = grad_A[i];
    }
    for (int t = count - 1; t >= 0; t--) {
        const vec d = tokens.delta[t], x = tokens.input[t], dy = tokens.dy[t];
        const float *b = B[t] + n, *c = C[t] + n;
        vec from_decay = tokens.from_decay[t], from_input = tokens.from_input[t];
        vec *sum_B = memory.sums + t * 2 * NB, *sum_C = sum_B + NB;
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            const vec grad = g[i] + dy * splat(c[i]);
            sum_C[i] = (first ? vec{} : sum_C[i]) + dy * h[i];
            sum_B[i] = (first ? vec{} : sum_B[i]) + grad * x;
            from_input = from_input + grad * splat(b[i]);
            g[i] = grad * memory.decays[t][i];
            h[i] = memory.before[t][i];
            const vec exponent = g[i] * h[i];  // gradient of delta * A
            from_decay = from_decay + exponent * a[i];
            ga[i] = ga[i] + exponent * d;
        }
        tokens.from_decay[t] = from_decay;
        tokens.from_input[t] = from_input;
    }
    for (int i = 0; i < NB; i++) {
        grad_state[i] = g[i];
        grad_A[i] = ga[i];
    }
}

// Memory of the backward of a group of channels.
template <int V>
struct GroupMemory {
    Tokens tokens[V];
    BlockMemory block;
};

template <int V, int NB>
void backward_block(const vec *A, const vec *saved, vec *grad_state, vec *grad_A, const float *const *B, const float *const *C,
                    int64_t n, int64_t N, int count, GroupMemory<V> &memory, const int64_t *order, float *grad_B, float *grad_C,
                    bool add) {
    for (int v = 0; v < V; v++) {
        const int64_t at = v * N + n;
        backward_states<NB>(A + at, saved + at, grad_state + at, grad_A + at, B, C, n, count, v == 0, memory.tokens[v], memory.block);
    }
    alignas(64) float sums[SEGMENT * 2 * NB + LANES];
    for (int i = 0; i < count * 2 * NB; i += LANES) store(sums + i, lane_sums(memory.block.sums + i));
    for (int t = 0; t < count; t++) {
        float *to_B = grad_B + order[t] * N + n, *to_C = grad_C + order[t] * N + n;
        const float *from = sums + t * 2 * NB;
        for (int i = 0; i < NB; i++) to_B[i] = (add ? to_B[i] : 0) + from[i];
        for (int i = 0; i < NB; i++) to_C[i] = (add ? to_C[i] : 0) + from[NB + i];
    }
}

// V vectors of channels from `first` on, in one direction.
template <typename T, int V>
void backward_vectors(const ScanBackward &g, int64_t image, int64_t k, int64_t first, int some, float *grad_B, float *grad_C,
                      bool add) {
    const Scan &s = g.scan;
    const Rows<T> rows(s, image, k);
    const int lanes = V == WIDE ? LANES : some;
    const int64_t N = s.states, at = image * s.directions + k;
    const int64_t entry = s.batch * s.directions * N * s.channels;
    const vec mean = splat(1.0f / s.directions);
    const T *grad_y = static_cast<const T *>(g.grad_y) + image * s.length * s.channels + first;
    T *grad_u = static_cast<T *>(g.grad_u) + at * s.length * s.channels + first;
    T *grad_delta = static_cast<T *>(g.grad_delta) + at * s.length * s.channels + first;
    const float *saved = g.saved + at * N * s.channels + first;

    static thread_local Scratch scratch;  // kept: new pages every time would cost more
    vec *A = scratch.of(4 * V * N + sizeof(GroupMemory<V>) / sizeof(vec));  // (V, N), like the next three
    vec *grad_A = A + V * N, *grad_state = grad_A + V * N, *state = grad_state + V * N;
    GroupMemory<V> &memory = *reinterpret_cast<GroupMemory<V> *>(state + V * N);
    const float *B[SEGMENT], *C[SEGMENT];
    vec skip[V], bias[V], grad_skip[V] = {}, grad_bias[V] = {};
    for (int v = 0; v < V; v++) {
        const int64_t c = k * s.channels + first + v * LANES;
        skip[v] = s.D ? load_some(s.D + c, lanes) : vec{};
        bias[v] = s.delta_bias ? load_some(s.delta_bias + c, lanes) : vec{};
        for (int64_t n = 0; n < N; n++) {
            A[v * N + n] = load_some(s.A + (k * N + n) * s.channels + first + v * LANES, lanes);
            grad_A[v * N + n] = grad_state[v * N + n] = vec{};
        }
    }

    const int64_t segments = (s.length + SEGMENT - 1) / SEGMENT;
    for (int64_t segment = segments - 1; segment >= 0; segment--) {
        const int64_t start = segment * SEGMENT;
        const int count = s.length - start < SEGMENT ? s.length - start : SEGMENT;
        const int64_t *order = rows.order + start;
        for (int64_t n = 0; n < N; n++)
            for (int v = 0; v < V; v++)
                state[v * N + n] = load_some(saved + segment * entry + n * s.channels + v * LANES, lanes);
        for (int t = 0; t < count; t++) {
            if (segment) {
                const int64_t next = order[t - SEGMENT] * s.channels;
                prefetch(rows.u + next + first, V);
                prefetch(rows.delta + next + first, V);
                prefetch(grad_y + next, V);
            }
            B[t] = rows.B + order[t] * N;
            C[t] = rows.C + order[t] * N;
            for (int v = 0; v < V; v++) {
                Tokens &to = memory.tokens[v];
                const int64_t c = order[t] * s.channels + v * LANES;
                to.raw[t] = load_some(rows.delta + first + c, lanes) + bias[v];
                to.u[t] = load_some(rows.u + first + c, lanes);
                to.delta[t] = s.softplus ? softplus(to.raw[t]) : to.raw[t];
                to.input[t] = to.delta[t] * to.u[t];
                to.dy[t] = load_some(grad_y + c, lanes) * mean;
                to.from_decay[t] = to.from_input[t] = vec{};
            }
        }
        int64_t n = 0;
        for (; n + NARROW <= N; n += NARROW)
            backward_block<V, NARROW>(A, state, grad_state, grad_A, B, C, n, N, count, memory, order, grad_B, grad_C, add);
        for (; n < N; n++) backward_block<V, 1>(A, state, grad_state, grad_A, B, C, n, N, count, memory, order, grad_B, grad_C, add);
        for (int t = 0; t < count; t++)
            for (int v = 0; v < V; v++) {
                const Tokens &from = memory.tokens[v];
                const int64_t c = order[t] * s.channels + v * LANES;
                vec gd = from.from_decay[t] + from.from_input[t] * from.u[t];
                if (s.softplus) gd = gd * sigmoid(from.raw[t]);
                grad_bias[v] = grad_bias[v] + gd;
                grad_skip[v] = grad_skip[v] + from.dy[t] * from.u[t];
                store_some(grad_delta + c, gd, lanes);
                store_some(grad_u + c, from.from_input[t] * from.delta[t] + skip[v] * from.dy[t], lanes);
            }
    }
    for (int v = 0; v < V; v++) {
        const int64_t c = at * s.channels + first + v * LANES;
        store_some(g.grad_D + c, grad_skip[v], lanes);
        store_some(g.grad_delta_bias + c, grad_bias[v], lanes);
        for (int64_t n = 0; n < N; n++)
            store_some(g.grad_A + (at * N + n) * s.channels + first + v * LANES, grad_A[v * N + n], lanes);
    }
}

template <typename T>
void scan_backward_group(const ScanBackward &g, int64_t image, int64_t k, int64_t group) {
    const Scan &s = g.scan;
    const int64_t first = group * GROUP, rest = s.channels - first;
    const int64_t part = ((group * s.batch + image) * s.directions + k) * s.length * s.states;
    float *grad_B = g.grad_B + part, *grad_C = g.grad_C + part;
    if (rest >= GROUP)
        backward_vectors<T, WIDE>(g, image, k, first, LANES, grad_B, grad_C, false);
    else
        for (int64_t c = 0; c < rest; c += LANES)
            backward_vectors<T, 1>(g, image, k, first + c, rest - c < LANES ? rest - c : LANES, grad_B, grad_C, c > 0);
}

void scan_backward(const ScanBackward &g, int64_t image, int64_t k, int64_t group) {
    [[maybe_unused]] const FlushTiny flush;
    g.half ? scan_backward_group<bf16>(g, image, k, group) : scan_backward_group<float>(g, image, k, group);
}

template <int W>
struct Taps {  // of one vector of channels in one direction
    vec weight[W], bias;

    void load_from(const Conv &c, int64_t k, int64_t first, int lanes) {
        for (int j = 0; j < W; j++) weight[j] = load_some(c.weight + (k * W + j) * c.channels + first, lanes);
        bias = load_some(c.bias + k * c.channels + first, lanes);
    }
};

// Channels from `first` up to `end`, at most a group: a segment of tokens for one vector after the other.
template <int W, typename T>
void conv_forward_channels(const Conv &c, int64_t image, int64_t first, int64_t end) {
    const T *x = static_cast<const T *>(c.x) + image * c.length * c.row;
    Taps<W> taps[WIDE] = {};
    for (int64_t k = 0; k < c.directions; k++) {
        const int64_t *order = c.orders + k * c.length;
        T *out = static_cast<T *>(c.out) + (image * c.directions + k) * c.length * c.channels;
        vec windows[WIDE][W] = {};  // the last W tokens, the oldest first
        for (int64_t start = 0; start < c.length; start += SEGMENT) {
            const int64_t stop = start + SEGMENT < c.length ? start + SEGMENT : c.length;
            for (int64_t t = stop; t < stop + SEGMENT && t < c.length; t++) prefetch(x + order[t] * c.row + first, WIDE);
            for (int v = 0; first + v * LANES < end; v++) {
                const int64_t channel = first + v * LANES;
                const int lanes = end - channel < LANES ? end - channel : LANES;
                if (start == 0) taps[v].load_from(c, k, channel, lanes);
                const Taps<W> tap = taps[v];
                vec window[W];
                for (int j = 0; j < W; j++) window[j] = windows[v][j];
                for (int64_t t = start; t < stop; t++) {
                    for (int j = 0; j + 1 < W; j++) window[j] = window[j + 1];
                    window[W - 1] = load_some(x + order[t] * c.row + channel, lanes);
                    vec sum = tap.bias;
                    for (int j = 0; j < W; j++) sum = sum + window[j] * tap.weight[j];
                    store_some(out + order[t] * c.channels + channel, silu(sum), lanes);
                }
                for (int j = 0; j < W; j++) windows[v][j] = window[j];
            }
        }
    }
}

// From the last token to the first; the same channels.
template <int W, typename T>
void conv_backward_channels(const Conv &c, int64_t image, int64_t first, int64_t end) {
    const T *x = static_cast<const T *>(c.x) + image * c.length * c.row;
    float *grad_x = c.grad_x + image * c.length * c.channels;
    struct Moving {
        Taps<W> taps;
        vec inputs[W], later[W];  // tokens t - W + 1 to t; gradients before SiLU of tokens t to t + W - 1
        vec grad_weight[W], grad_bias;
    } moving[WIDE];
    for (int64_t k = 0; k < c.directions; k++) {
        const int64_t *order = c.orders + k * c.length;
        const int64_t at = image * c.directions + k;
        const T *grad = static_cast<const T *>(c.grad) + at * c.length * c.channels;
        for (int64_t stop = c.length; stop > 0;) {
            const int64_t start = stop > SEGMENT ? stop - SEGMENT : 0;
            for (int64_t t = start - 1; t >= 0 && t >= start - SEGMENT; t--) {
                prefetch(grad + order[t] * c.channels + first, WIDE);
                if (t >= W) prefetch(x + order[t - W] * c.row + first, WIDE);
                if (k) prefetch(grad_x + order[t] * c.channels + first, WIDE);
            }
            for (int v = 0; first + v * LANES < end; v++) {
                const int64_t channel = first + v * LANES;
                const int lanes = end - channel < LANES ? end - channel : LANES;
                if (stop == c.length) {
                    moving[v] = Moving{};
                    moving[v].taps.load_from(c, k, channel, lanes);
                    for (int j = 0; j < W; j++) {
                        const int64_t t = c.length - W + j;
                        if (t >= 0) moving[v].inputs[j] = load_some(x + order[t] * c.row + channel, lanes);
                    }
                }
                Moving m = moving[v];
                for (int64_t t = stop - 1; t >= start; t--) {
                    vec sum = m.taps.bias;
                    for (int j = 0; j < W; j++) sum = sum + m.inputs[j] * m.taps.weight[j];
                    const vec gate = sigmoid(sum);
                    const vec g =
                        load_some(grad + order[t] * c.channels + channel, lanes) * gate * (splat(1.0f) + sum * (splat(1.0f) - gate));
                    m.grad_bias = m.grad_bias + g;
                    for (int j = W - 1; j > 0; j--) m.later[j] = m.later[j - 1];
                    m.later[0] = g;
                    vec to_x = {};
                    for (int j = 0; j < W; j++) {
                        m.grad_weight[j] = m.grad_weight[j] + g * m.inputs[j];
                        to_x = to_x + m.later[j] * m.taps.weight[W - 1 - j];
                    }
                    float *to = grad_x + order[t] * c.channels + channel;
                    store_some(to, k ? load_some(to, lanes) + to_x : to_x, lanes);
                    for (int j = W - 1; j > 0; j--) m.inputs[j] = m.inputs[j - 1];
                    m.inputs[0] = t - W >= 0 ? load_some(x + order[t - W] * c.row + channel, lanes) : vec{};
                }
                moving[v] = m;
            }
            stop = start;
        }
        for (int v = 0; first + v * LANES < end; v++) {
            const int64_t channel = first + v * LANES;
            const int lanes = end - channel < LANES ? end - channel : LANES;
            for (int j = 0; j < W; j++)
                store_some(c.grad_weight + (at * W + j) * c.channels + channel, moving[v].grad_weight[j], lanes);
            store_some(c.grad_bias + at * c.channels + channel, moving[v].grad_bias, lanes);
        }
    }
}

typedef void (*ConvChannels)(const Conv &, int64_t image, int64_t first, int64_t end);
// By the number of taps.
template <typename T>
constexpr ConvChannels CONV_FORWARD[] = {conv_forward_channels<1, T>, conv_forward_channels<2, T>, conv_forward_channels<3, T>,
                                         conv_forward_channels<4, T>, conv_forward_channels<5, T>, conv_forward_channels<6, T>,
                                         conv_forward_channels<7, T>, conv_forward_channels<8, T>};
template <typename T>
constexpr ConvChannels CONV_BACKWARD[] = {conv_backward_channels<1, T>, conv_backward_channels<2, T>, conv_backward_channels<3, T>,
                                          conv_backward_channels<4, T>, conv_backward_channels<5, T>, conv_backward_channels<6, T>,
                                          conv_backward_channels<7, T>, conv_backward_channels<8, T>};

void conv_group(const Conv &c, int64_t image, int64_t group, ConvChannels channels) {
    const int64_t first = group * GROUP;
    channels(c, image, first, first + GROUP < c.channels ? first + GROUP : c.channels);
}

void conv_forward(const Conv &c, int64_t image, int64_t group) {
    conv_group(c, image, group, c.half ? CONV_FORWARD<bf16>[c.taps - 1] : CONV_FORWARD<float>[c.taps - 1]);
}

void conv_backward(const Conv &c, int64_t image, int64_t group) {
    conv_group(c, image, group, c.half ? CONV_BACKWARD<bf16>[c.taps - 1] : CONV_BACKWARD<float>[c.taps - 1]);
}

// Eight chains of exponentials in registers, as many as a block of states has on AVX-512; nothing is read or written.
float exponentials(int64_t repeats) {
    constexpr int CHAINS = 8;
    vec x[CHAINS], sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        x[i] = splat(-0.01f * (i + 1));
        sum[i] = vec{};
    }
    for (int64_t r = 0; r < repeats; r++)
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = sum[i] + exp2v(x[i]);
            x[i] = x[i] * splat(0.9999f);  // or the compiler takes it out of the loop
        }
    float total = 0;
    for (int i = 0; i < CHAINS; i++)
        for (int lane = 0; lane < LANES; lane++) total += sum[i][lane];
    return total;
}

constexpr Kernels KERNELS = {GROUP, scan_forward, scan_backward, conv_forward, conv_backward, exponentials};

}  // namespace

#if defined(__AVX512F__)
extern "C" const Kernels *arm_kernels_avx512() { return &KERNELS; }
#elif defined(__AVX2__)
extern "C" const Kernels *arm_kernels_avx2() { return &KERNELS; }
#else
extern "C" const Kernels *arm_kernels_plain() { return &KERNELS; }
#endif
