// What Python calls through the C interface (interface.cpp) and each instruction set provides (kernels.cpp).
//
// Legend: B images, K directions, L tokens, D channels, N states, W taps, S segments, P parts; tensors contiguous float32 but
// for what is said, orders int64.
#pragma once

#include <cstdint>

struct Scan {
    int64_t batch, directions, length, channels, states;
    int64_t softplus;     // whether delta goes through it, after the bias
    int64_t half;         // whether u and delta are bfloat16, and y or its gradient, and the gradients of u and delta
    int64_t half_BC;      // whether B and C are bfloat16
    int64_t row_B, row_C; // numbers from one token to the next
    const void *u, *delta;        // (K, B, L, D), in token order
    const float *A;               // (K, N, D)
    const void *B, *C;            // (K, B, L, N), rows row_B and row_C apart
    const float *D, *delta_bias;  // (K, D), or null
    const int64_t *orders;        // (K, L)
};

struct ScanForward {
    Scan scan;
    void *y;       // (B, L, D), mean over the directions
    float *saved;  // (S + 1, B, K, N, D): states before every segment and after the last; or (1, ...), the last only
    int64_t keep;  // whether it is the former
};

struct ScanBackward {
    Scan scan;
    const void *grad_y;               // (B, L, D)
    const float *saved;               // (S + 1, B, K, N, D)
    void *grad_u, *grad_delta;        // (K, B, L, D)
    float *grad_B, *grad_C;           // (P, K, B, L, N), for P parts of the channels
    float *grad_A;                    // (B, K, N, D)
    float *grad_D, *grad_delta_bias;  // (B, K, D)
    int64_t parts;                    // P
};

struct Conv {
    int64_t batch, directions, length, channels, taps;
    int64_t row;            // numbers from one token of x to the next
    int64_t half;           // whether x and out, or x and grad, are bfloat16
    const void *x;          // (B, L, D), rows `row` apart
    const float *weight;    // (K, D, W)
    const float *bias;      // (K, D)
    const int64_t *orders;  // (K, L)
    void *out;              // forward: (K, B, L, D)
    const void *grad;       // backward: (K, B, L, D)
    float *grad_x;          // (B, L, D)
    float *grad_weight;     // (B, K, D, W)
    float *grad_bias;       // (B, K, D)
};

struct Gate {
    int64_t rows, channels;
    int64_t row_grad, row_x, row_z;  // numbers from one row to the next
    int64_t half;                    // whether all is bfloat16
    const void *grad, *x, *z;        // grad: null in the forward
    void *out;                       // rows one after the other: x silu(z), or the gradient of x
    void *grad_z;
};

struct Norm {
    int64_t rows, channels;
    int64_t row_x, row_branch;
    const float *x;
    const void *branch;         // bfloat16, or null
    const float *weight, *bias;
    float *total;               // x + branch; not written without one
    void *out;                  // bfloat16
    float *mean, *scale;        // (rows)
    float eps;
};

struct NormBackward {
    int64_t rows, channels;
    int64_t row_grad, row_total, row_x;
    const void *grad;          // bfloat16
    const float *grad_total;   // or null
    const float *x, *weight, *mean, *scale;
    float *grad_x;
    void *grad_branch;         // bfloat16, or null
    float *sums;               // (P, 2, channels), for P parts of the rows: gradients of weight and bias
};

constexpr int SEGMENT = 24;  // tokens between two saved states
constexpr int MAX_TAPS = 8;
constexpr int CHAINS = 8;

// One instruction set. Each call does the channels from `first`, a multiple of `group`, up to `end`, or those rows.
struct Kernels {
    int64_t lanes;  // of a vector
    int64_t group;  // channels
    void (*scan_forward)(const ScanForward &, int64_t image, int64_t first, int64_t end);
    void (*scan_backward)(const ScanBackward &, int64_t image, int64_t direction, int64_t part, int64_t first, int64_t end);
    void (*conv_forward)(const Conv &, int64_t image, int64_t first, int64_t end);
    void (*conv_backward)(const Conv &, int64_t image, int64_t first, int64_t end);
    void (*gate)(const Gate &, int64_t part, int64_t first, int64_t end);
    void (*norm)(const Norm &, int64_t part, int64_t first, int64_t end);
    void (*norm_backward)(const NormBackward &, int64_t part, int64_t first, int64_t end);
    float (*exponentials)(int64_t repeats);  // CHAINS vectors of them, `repeats` times, in registers; their sum
};

extern "C" const Kernels *arm_kernels_plain();
extern "C" const Kernels *arm_kernels_avx2();
extern "C" const Kernels *arm_kernels_avx512();
