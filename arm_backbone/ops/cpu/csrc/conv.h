// Causal depthwise convolution with SiLU, forward and backward. Legend: kernels.h.
#pragma once

#include "rows.h"

namespace {

template <int W>
struct Taps {  // weights and bias of one vector of channels in one direction
    vec weight[W], bias;

    Taps(const float *weights, const float *biases, int64_t channels, int lanes) {  // (W, D), D
        for (int j = 0; j < W; j++) weight[j] = load_some(weights + j * channels, lanes);
        bias = load_some(biases, lanes);
    }
};

// Convolves tokens `start` to `stop` of direction k for one vector of channels. x is the image, out its direction k.
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

// Convolves all directions of an image for channels `first` to `end`.
template <int W, typename T>
void conv_forward_channels(const Conv &c, int64_t image, int64_t first, int64_t end) {
    float *weight = scratch<float>(0, W * c.channels);
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

// Backward of tokens `stop` down to `start`. Between segments, `kept` carries the gradients before SiLU of the W tokens
// from `stop` on.
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

// Backward of all directions of an image, from the last token to the first, for channels `first` to `end`.
template <int W, typename T>
void conv_backward_channels(const Conv &c, int64_t image, int64_t first, int64_t end) {
    const int64_t D = c.channels, vectors = (end - first + LANES - 1) / LANES;
    const size_t bytes = (end - first) * sizeof(float);
    vec *later = scratch<vec>(0, vectors * W + 2 * W * (D / LANES + 1));
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
// Kernels by number of taps.
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

}  // namespace
