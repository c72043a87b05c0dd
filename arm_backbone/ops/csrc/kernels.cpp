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

// `count` tokens through NB states from state n on: h is read and written, out is added to.
template <int NB>
INLINE void run_states(const float *A, int64_t stride, const float *const *B, const float *const *C, const vec *delta,
                       const vec *input, int count, float *h_memory, int lanes, vec *out) {
    vec h[NB], a[NB];
    for (int i = 0; i < NB; i++) {
        h[i] = load_some(h_memory + i * stride, lanes);
        a[i] = load_some(A + i * stride, lanes) * splat(LOG2E);
    }
    for (int t = 0; t < count; t++) {
        vec sum = {};
        const vec d = delta[t], x = input[t];
        const float *b = B[t], *c = C[t];
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            h[i] = exp2v(d * a[i]) * h[i] + x * splat(b[i]);
            sum = sum + h[i] * splat(c[i]);
        }
        out[t] = out[t] + sum;
    }
    for (int i = 0; i < NB; i++) store_some(h_memory + i * stride, h[i], lanes);
}

// One vector of channels from `first` on, in all directions; `total` adds them up, (L) rows of `stride` floats.
template <typename T>
void forward_vector(const ScanForward &f, int64_t image, int64_t first, int lanes, float *total, int64_t stride) {
    const Scan &s = f.scan;
    const vec mean = splat(1.0f / s.directions);
    const int64_t entry = s.batch * s.directions * s.states * s.channels;  // of `saved`, one segment
    vec delta[SEGMENT], input[SEGMENT], out[SEGMENT];
    const float *B[SEGMENT], *C[SEGMENT];
    for (int64_t k = 0; k < s.directions; k++) {
        const Rows<T> rows(s, image, k);
        const float *A = s.A + k * s.states * s.channels + first;
        const vec skip = s.D ? load_some(s.D + k * s.channels + first, lanes) : vec{};
        const vec bias = s.delta_bias ? load_some(s.delta_bias + k * s.channels + first, lanes) : vec{};
        float *state = f.saved + (image * s.directions + k) * s.states * s.channels + first;
        for (int64_t n = 0; n < s.states; n++) store_some(state + n * s.channels, vec{}, lanes);
        for (int64_t start = 0; start < s.length; start += SEGMENT) {
            const int count = s.length - start < SEGMENT ? s.length - start : SEGMENT;
            if (f.keep) {
                for (int64_t n = 0; n < s.states; n++)
                    store_some(state + entry + n * s.channels, load_some(state + n * s.channels, lanes), lanes);
                state += entry;
            }
            for (int t = 0; t < count; t++) {
                const int64_t token = rows.order[start + t];
                const vec raw = load_some(rows.delta + token * s.channels + first, lanes) + bias;
                const vec u = load_some(rows.u + token * s.channels + first, lanes);
                delta[t] = s.softplus ? softplus(raw) : raw;
                input[t] = delta[t] * u;
                out[t] = skip * u;
                B[t] = rows.B + token * s.states;
                C[t] = rows.C + token * s.states;
            }
            int64_t n = 0;
            for (; n + BLOCK <= s.states; n += BLOCK) {
                run_states<BLOCK>(A + n * s.channels, s.channels, B, C, delta, input, count, state + n * s.channels, lanes, out);
                for (int t = 0; t < count; t++) B[t] += BLOCK, C[t] += BLOCK;
            }
            for (; n < s.states; n++) {
                run_states<1>(A + n * s.channels, s.channels, B, C, delta, input, count, state + n * s.channels, lanes, out);
                for (int t = 0; t < count; t++) B[t]++, C[t]++;
            }
            for (int t = 0; t < count; t++) {
                float *to = total + rows.order[start + t] * stride;
                const vec before = k ? load_some(to, lanes) : vec{};
                store_some(to, before + out[t] * mean, lanes);
            }
        }
    }
}

void scan_forward(const ScanForward &f, int64_t image, int64_t group) {
    const Scan &s = f.scan;
    const int64_t end = (group + 1) * GROUP < s.channels ? (group + 1) * GROUP : s.channels;
    static thread_local Scratch sums;
    for (int64_t first = group * GROUP; first < end; first += LANES) {
        const int lanes = end - first < LANES ? end - first : LANES;
        if (!f.half) {
            float *y = static_cast<float *>(f.y) + image * s.length * s.channels + first;
            forward_vector<float>(f, image, first, lanes, y, s.channels);
            continue;
        }
        vec *total = sums.of(s.length);  // directions are added up in float32
        forward_vector<bf16>(f, image, first, lanes, reinterpret_cast<float *>(total), LANES);
        bf16 *y = static_cast<bf16 *>(f.y) + image * s.length * s.channels + first;
        for (int64_t t = 0; t < s.length; t++) store_some(y + t * s.channels, total[t], lanes);
    }
}

// V vectors of channels from `first` on, in one direction; scratch holds states and decays of a segment.
template <int V>
void backward_vectors(const ScanBackward &g, int64_t image, int64_t k, int64_t first, int lanes, float *grad_B, float *grad_C,
                      bool add, vec *scratch) {
    const Scan &s = g.scan;
    const Rows<float> rows(s, image, k);
    const int64_t N = s.states, at = image * s.directions + k;
    const int64_t entry = s.batch * s.directions * N * s.channels;
    const vec mean = splat(1.0f / s.directions);
    const float *grad_y = g.grad_y + image * s.length * s.channels + first;
    float *grad_u = g.grad_u + at * s.length * s.channels + first;
    float *grad_delta = g.grad_delta + at * s.length * s.channels + first;
    const float *saved = g.saved + at * N * s.channels + first;
    const int64_t padded = (N + LANES - 1) / LANES * LANES;

    vec *states = scratch;                          // (SEGMENT + 1, N, V), the first before the segment
    vec *decays = states + (SEGMENT + 1) * N * V;   // (SEGMENT, N, V)
    vec *A = decays + SEGMENT * N * V;              // (N, V)
    vec *grad_A = A + N * V;                        // (N, V)
    vec *grad_state = grad_A + N * V;               // (N, V), carried from segment to segment
    vec *sums_B = grad_state + N * V;               // (padded N)
    vec *sums_C = sums_B + padded;
    vec skip[V], bias[V], grad_skip[V] = {}, grad_bias[V] = {};
    vec raw[SEGMENT][V], delta[SEGMENT][V], u[SEGMENT][V];
    for (int v = 0; v < V; v++) {
        const int64_t c = k * s.channels + first + v * LANES;
        skip[v] = s.D ? load_some(s.D + c, lanes) : vec{};
        bias[v] = s.delta_bias ? load_some(s.delta_bias + c, lanes) : vec{};
    }
    for (int64_t n = 0; n < N; n++)
        for (int v = 0; v < V; v++) {
            A[n * V + v] = load_some(s.A + (k * N + n) * s.channels + first + v * LANES, lanes);
            grad_A[n * V + v] = grad_state[n * V + v] = vec{};
        }
    for (int64_t n = N; n < padded; n++) sums_B[n] = sums_C[n] = vec{};

    const int64_t segments = (s.length + SEGMENT - 1) / SEGMENT;
    for (int64_t segment = segments - 1; segment >= 0; segment--) {
        const int64_t start = segment * SEGMENT;
        const int count = s.length - start < SEGMENT ? s.length - start : SEGMENT;
        for (int64_t n = 0; n < N; n++)
            for (int v = 0; v < V; v++)
                states[n * V + v] = load_some(saved + segment * entry + n * s.channels + v * LANES, lanes);
        for (int t = 0; t < count; t++) {  // the forward again
            const int64_t token = rows.order[start + t];
            const float *b = rows.B + token * N;
            vec input[V];
            for (int v = 0; v < V; v++) {
                raw[t][v] = load_some(rows.delta + token * s.channels + first + v * LANES, lanes) + bias[v];
                u[t][v] = load_some(rows.u + token * s.channels + first + v * LANES, lanes);
                delta[t][v] = s.softplus ? softplus(raw[t][v]) : raw[t][v];
                input[v] = delta[t][v] * u[t][v];
            }
            const vec *before = states + t * N * V;
            vec *after = states + (t + 1) * N * V, *decay = decays + t * N * V;
            for (int64_t n = 0; n < N; n++) {
                const vec bn = splat(b[n]);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const vec e = exp2v(delta[t][v] * A[n * V + v] * splat(LOG2E));
                    decay[n * V + v] = e;
                    after[n * V + v] = e * before[n * V + v] + input[v] * bn;
                }
            }
        }
        for (int t = count - 1; t >= 0; t--) {
            const int64_t token = rows.order[start + t];
            const float *b = rows.B + token * N, *c = rows.C + token * N;
            const vec *before = states + t * N * V, *after = before + N * V, *decay = decays + t * N * V;
            vec dy[V], input[V], from_decay[V] = {}, from_input[V] = {};
            for (int v = 0; v < V; v++) {
                dy[v] = load_some(grad_y + token * s.channels + v * LANES, lanes) * mean;
                input[v] = delta[t][v] * u[t][v];
            }
            for (int64_t n = 0; n < N; n++) {
                const vec bn = splat(b[n]), cn = splat(c[n]);
                vec sum_B = {}, sum_C = {};
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const int64_t i = n * V + v;
                    const vec grad = grad_state[i] + dy[v] * cn;
                    sum_C = sum_C + dy[v] * after[i];
                    sum_B = sum_B + grad * input[v];
                    from_input[v] = from_input[v] + grad * bn;
                    const vec passed = grad * decay[i];
                    const vec exponent = passed * before[i];  // gradient of delta * A
                    from_decay[v] = from_decay[v] + exponent * A[i];
                    grad_A[i] = grad_A[i] + exponent * delta[t][v];
                    grad_state[i] = passed;
                }
                sums_B[n] = sum_B;
                sums_C[n] = sum_C;
            }
            for (int64_t n = 0; n < N; n += LANES) {
                const int some = N - n < LANES ? N - n : LANES;
                float *to_B = grad_B + token * N + n, *to_C = grad_C + token * N + n;
                const vec b0 = add ? load_some(to_B, some) : vec{}, c0 = add ? load_some(to_C, some) : vec{};
                store_some(to_B, b0 + lane_sums(sums_B + n), some);
                store_some(to_C, c0 + lane_sums(sums_C + n), some);
            }
            for (int v = 0; v < V; v++) {
                const int64_t c = token * s.channels + v * LANES;
                vec gd = from_decay[v] + from_input[v] * u[t][v];
                if (s.softplus) gd = gd * sigmoid(raw[t][v]);
                grad_bias[v] = grad_bias[v] + gd;
                grad_skip[v] = grad_skip[v] + dy[v] * u[t][v];
                store_some(grad_delta + c, gd, lanes);
                store_some(grad_u + c, from_input[v] * delta[t][v] + skip[v] * dy[v], lanes);
            }
        }
    }
    for (int v = 0; v < V; v++) {
        const int64_t c = at * s.channels + first + v * LANES;
        store_some(g.grad_D + c, grad_skip[v], lanes);
        store_some(g.grad_delta_bias + c, grad_bias[v], lanes);
        for (int64_t n = 0; n < N; n++)
            store_some(g.grad_A + (at * N + n) * s.channels + first + v * LANES, grad_A[n * V + v], lanes);
    }
}

void scan_backward(const ScanBackward &g, int64_t image, int64_t k, int64_t group) {
    const Scan &s = g.scan;
    const int64_t first = group * GROUP, rest = s.channels - first;
    const int64_t part = ((group * s.batch + image) * s.directions + k) * s.length * s.states;
    float *grad_B = g.grad_B + part, *grad_C = g.grad_C + part;
    const int64_t vectors = ((2 * SEGMENT + 1) + 3) * s.states * WIDE + 2 * (s.states + LANES);
    static thread_local Scratch memory;  // kept: a quarter of a megabyte, new pages every time would cost more
    vec *scratch = memory.of(vectors);
    if (rest >= GROUP)
        backward_vectors<WIDE>(g, image, k, first, LANES, grad_B, grad_C, false, scratch);
    else
        for (int64_t c = 0; c < rest; c += LANES)
            backward_vectors<1>(g, image, k, first + c, rest - c < LANES ? rest - c : LANES, grad_B, grad_C, c > 0, scratch);
}

struct Taps {  // of one vector of channels in one direction
    vec weight[MAX_TAPS], bias;

    Taps(const Conv &c, int64_t k, int64_t first, int lanes) {
        for (int64_t j = 0; j < c.taps; j++)
            weight[j] = load_some(c.weight + (k * c.taps + j) * c.channels + first, lanes);
        bias = load_some(c.bias + k * c.channels + first, lanes);
    }
};

template <int W, typename T>
void conv_forward_vector(const Conv &c, int64_t image, int64_t first, int lanes) {
    const T *x = static_cast<const T *>(c.x) + image * c.length * c.row + first;
    for (int64_t k = 0; k < c.directions; k++) {
        const Taps taps(c, k, first, lanes);
        const int64_t *order = c.orders + k * c.length;
        T *out = static_cast<T *>(c.out) + (image * c.directions + k) * c.length * c.channels + first;
        vec window[W] = {};  // the last W tokens, the oldest first
        for (int64_t t = 0; t < c.length; t++) {
            for (int j = 0; j + 1 < W; j++) window[j] = window[j + 1];
            window[W - 1] = load_some(x + order[t] * c.row, lanes);
            vec sum = taps.bias;
            for (int j = 0; j < W; j++) sum = sum + window[j] * taps.weight[j];
            store_some(out + order[t] * c.channels, silu(sum), lanes);
        }
    }
}

// From the last token to the first: the window holds the gradients before SiLU of a token and the W - 1 after it.
template <int W>
void conv_backward_vector(const Conv &c, int64_t image, int64_t first, int lanes) {
    const float *x = static_cast<const float *>(c.x) + image * c.length * c.row + first;
    float *grad_x = c.grad_x + image * c.length * c.channels + first;
    for (int64_t k = 0; k < c.directions; k++) {
        const Taps taps(c, k, first, lanes);
        const int64_t *order = c.orders + k * c.length;
        const int64_t at = image * c.directions + k;
        const float *grad = c.grad + at * c.length * c.channels + first;
        vec inputs[W] = {}, later[W] = {}, grad_weight[W] = {}, grad_bias = {};
        // inputs: tokens t - W + 1 to t; later: gradients of tokens t to t + W - 1
        for (int j = 0; j < W; j++) {
            const int64_t t = c.length - W + j;  // as for t = length, moved on below
            inputs[j] = t >= 0 ? load_some(x + order[t] * c.row, lanes) : vec{};
        }
        for (int64_t t = c.length - 1; t >= 0; t--) {
            vec sum = taps.bias;
            for (int j = 0; j < W; j++) sum = sum + inputs[j] * taps.weight[j];
            const vec gate = sigmoid(sum);
            const vec g = load_some(grad + order[t] * c.channels, lanes) * gate * (splat(1.0f) + sum * (splat(1.0f) - gate));
            grad_bias = grad_bias + g;
            for (int j = W - 1; j > 0; j--) later[j] = later[j - 1];
            later[0] = g;
            vec to_x = {};
            for (int j = 0; j < W; j++) {
                grad_weight[j] = grad_weight[j] + g * inputs[j];
                to_x = to_x + later[j] * taps.weight[W - 1 - j];
            }
            float *to = grad_x + order[t] * c.channels;
            store_some(to, k ? load_some(to, lanes) + to_x : to_x, lanes);
            for (int j = W - 1; j > 0; j--) inputs[j] = inputs[j - 1];
            inputs[0] = t - W >= 0 ? load_some(x + order[t - W] * c.row, lanes) : vec{};
        }
        for (int j = 0; j < W; j++)
            store_some(c.grad_weight + (at * W + j) * c.channels + first, grad_weight[j], lanes);
        store_some(c.grad_bias + at * c.channels + first, grad_bias, lanes);
    }
}

typedef void (*ConvVector)(const Conv &, int64_t image, int64_t first, int lanes);
// By the number of taps.
template <typename T>
constexpr ConvVector CONV_FORWARD[] = {conv_forward_vector<1, T>, conv_forward_vector<2, T>, conv_forward_vector<3, T>,
                                       conv_forward_vector<4, T>, conv_forward_vector<5, T>, conv_forward_vector<6, T>,
                                       conv_forward_vector<7, T>, conv_forward_vector<8, T>};
constexpr ConvVector CONV_BACKWARD[] = {conv_backward_vector<1>, conv_backward_vector<2>, conv_backward_vector<3>,
                                        conv_backward_vector<4>, conv_backward_vector<5>, conv_backward_vector<6>,
                                        conv_backward_vector<7>, conv_backward_vector<8>};

void conv_group(const Conv &c, int64_t image, int64_t group, ConvVector vector) {
    const int64_t end = (group + 1) * GROUP < c.channels ? (group + 1) * GROUP : c.channels;
    for (int64_t first = group * GROUP; first < end; first += LANES)
        vector(c, image, first, end - first < LANES ? end - first : LANES);
}

void conv_forward(const Conv &c, int64_t image, int64_t group) {
    conv_group(c, image, group, c.half ? CONV_FORWARD<bf16>[c.taps - 1] : CONV_FORWARD<float>[c.taps - 1]);
}
void conv_backward(const Conv &c, int64_t image, int64_t group) { conv_group(c, image, group, CONV_BACKWARD[c.taps - 1]); }

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
