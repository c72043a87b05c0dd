// SiLU gate, LayerNorm and RMSNorm of rows, forward and backward. Legend: kernels.h.
#pragma once

#include "rows.h"

namespace {

// Calls `vector` for each vector of a row, with its first channel and number of lanes.
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
        T *out = static_cast<T *>(g.out) + r * g.row_out, *grad_z = static_cast<T *>(g.grad_z) + (grad ? r * g.row_grad_z : 0);
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

// The first lanes of x; zeros after them.
INLINE vec first_lanes(vec x, int lanes) {
    for (int i = lanes; i < LANES; i++) x[i] = 0;
    return x;
}

INLINE float lane_sum(vec x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

template <typename T>
void norm_rows(const Norm &n, int64_t first, int64_t end) {
    const float width = n.channels;
    for (int64_t r = first; r < end; r++) {
        const float *x = n.x + r * n.row_x;
        vec sum = {};
        if (n.branch) {
            const T *branch = static_cast<const T *>(n.branch) + r * n.row_branch;
            float *total = n.total + r * n.channels;
            each_vector(n.channels, [&](int64_t c, int lanes) {
                const vec value = load_some(x + c, lanes) + load_some(branch + c, lanes);
                store_some(total + c, value, lanes);
                sum = sum + value;
            });
            x = total;
        } else if (n.centered) {
            each_vector(n.channels, [&](int64_t c, int lanes) { sum = sum + load_some(x + c, lanes); });
        }
        const float mean = n.centered ? lane_sum(sum) / width : 0;
        vec squares = {};
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec d = first_lanes(load_some(x + c, lanes) - splat(mean), lanes);
            squares = squares + d * d;
        });
        const float scale = 1 / __builtin_sqrtf(lane_sum(squares) / width + n.eps);
        T *out = static_cast<T *>(n.out) + r * n.channels;
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec normed = (load_some(x + c, lanes) - splat(mean)) * splat(scale);
            store_some(out + c, normed * load_some(n.weight + c, lanes) + load_optional(n.bias, c, lanes), lanes);
        });
        n.mean[r] = mean;
        n.scale[r] = scale;
    }
}

void norm(const Norm &n, int64_t, int64_t first, int64_t end) { (n.half ? norm_rows<bf16> : norm_rows<float>)(n, first, end); }

template <typename T>
void norm_backward_rows(const NormBackward &n, int64_t part, int64_t first, int64_t end) {
    const float width = n.channels;
    float *grad_weight = n.sums + part * 2 * n.channels, *grad_bias = grad_weight + n.channels;
    std::memset(grad_weight, 0, 2 * n.channels * sizeof(float));
    for (int64_t r = first; r < end; r++) {
        const float *x = n.x + r * n.row_x, *total = n.grad_total ? n.grad_total + r * n.row_total : nullptr;
        const T *grad = static_cast<const T *>(n.grad) + r * n.row_grad;
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
        const vec a = splat(n.centered ? lane_sum(sum) / width : 0), b = splat(lane_sum(product) / width);
        float *grad_x = n.grad_x + r * n.channels;
        T *grad_branch = n.grad_branch ? static_cast<T *>(n.grad_branch) + r * n.channels : nullptr;
        each_vector(n.channels, [&](int64_t c, int lanes) {
            const vec normed = (load_some(x + c, lanes) - mean) * scale;
            vec to_x = (load_some(grad + c, lanes) * load_some(n.weight + c, lanes) - a - normed * b) * scale;
            if (total) to_x = to_x + load_some(total + c, lanes);
            store_some(grad_x + c, to_x, lanes);
            if (grad_branch) store_some(grad_branch + c, to_x, lanes);
        });
    }
}

void norm_backward(const NormBackward &n, int64_t part, int64_t first, int64_t end) {
    (n.half ? norm_backward_rows<bf16> : norm_backward_rows<float>)(n, part, first, end);
}

}  // namespace
