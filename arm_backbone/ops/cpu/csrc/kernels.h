// The arguments that Python passes to the kernels through the C interface (interface.cpp), and the table of kernels
// that each instruction set implements (kernels.cpp).
//
// Legend: B images, K directions, L tokens, D channels, N states, W taps, S segments, P parts. Tensors are contiguous
// float32 unless noted, orders int64.
#pragma once

#include <cstdint>

struct Scan {
    int64_t batch, directions, length, channels, states;
    int64_t tokens_last;   // u, delta (B, D, L), B and C (B, N, L); K is 1, and tokens are visited as they lie
    int64_t softplus;      // apply softplus to delta, after the bias
    int64_t divisor;       // of the sum over directions: K for the mean, 1 for the sum
    int64_t shared_u;      // all directions read one u, (B, L, D)
    int64_t half;          // u, delta, y (or its gradient) and the gradients of u and delta are bfloat16
    int64_t half_BC;       // B and C are bfloat16
    int64_t row_B, row_C;  // numbers from one token to the next
    const void *u, *delta;        // (K, B, L, D), in token order
    const float *A;               // (K, N, D)
    const void *B, *C;            // (K, B, L, N), rows row_B and row_C apart
    const float *D, *delta_bias;  // (K, D), or null
    const int64_t *orders;        // (K, L)
};

struct ScanForward {
    Scan scan;
    void *y;           // (B, L, D), sum over the directions divided by `divisor`, then times silu(gate)
    float *saved;      // with keep (S + 1, B, K, N, D): before each segment and after the last; else (1, ...), the last
    int64_t keep;
    const void *gate;  // (B, L, D) of the type of y, rows `row_gate` apart, or null
    int64_t row_gate;
};

struct ScanBackward {
    Scan scan;
    const void *grad_y;               // (B, L, D)
    const float *saved;               // (S, B, K, N, D): states before each segment
    void *grad_u, *grad_delta;        // (K, B, L, D)
    float *grad_B, *grad_C;           // (P, K, B, L, N), for P parts of the channels
    float *grad_A;                    // (B, K, N, D)
    float *grad_D, *grad_delta_bias;  // (B, K, D)
    int64_t parts;                    // P
};

struct Conv {
    int64_t batch, directions, length, channels, taps;
    int64_t row;            // numbers from one token of x to the next
    int64_t half;           // x and out, or x and grad, are bfloat16
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
    int64_t row_grad, row_x, row_z, row_out, row_grad_z;  // numbers from one row to the next
    int64_t half;                                         // all tensors are bfloat16
    const void *grad, *x, *z;                             // grad: null in the forward
    void *out;                                            // x silu(z), or the gradient of x, which may be grad
    void *grad_z;
};

struct Norm {
    int64_t rows, channels;
    int64_t centered;           // subtract the mean: LayerNorm, otherwise RMSNorm
    int64_t row_x, row_branch;
    int64_t half;               // branch and out are bfloat16, otherwise float32
    const float *x;
    const void *branch;         // or null
    const float *weight, *bias; // bias: or null
    float *total;               // x + branch; not written without a branch
    void *out;
    float *mean, *scale;        // (rows)
    float eps;
};

struct NormBackward {
    int64_t rows, channels;
    int64_t centered;
    int64_t row_grad, row_total, row_x;
    int64_t half;              // grad and grad_branch are bfloat16, otherwise float32
    const void *grad;
    const float *grad_total;   // or null
    const float *x, *weight, *mean, *scale;
    float *grad_x;
    void *grad_branch;         // or null
    float *sums;               // (P, 2, channels): gradients of weight and bias from each of P parts of the rows
};

constexpr int SEGMENT = 24;  // tokens between two saved states
constexpr int MAX_TAPS = 8;
constexpr int CHAINS = 8;

// The kernels of one instruction set. Each call processes channels `first` to `end`, where `first` is a multiple of
// `group`, or rows `first` to `end`.
struct Kernels {
    int64_t lanes;  // floats in a vector
    int64_t group;  // channels processed together
    void (*scan_forward)(const ScanForward &, int64_t image, int64_t first, int64_t end);
    void (*scan_backward)(const ScanBackward &, int64_t image, int64_t direction, int64_t part, int64_t first, int64_t end);
    void (*conv_forward)(const Conv &, int64_t image, int64_t first, int64_t end);
    void (*conv_backward)(const Conv &, int64_t image, int64_t first, int64_t end);
    void (*gate)(const Gate &, int64_t part, int64_t first, int64_t end);
    void (*norm)(const Norm &, int64_t part, int64_t first, int64_t end);
    void (*norm_backward)(const NormBackward &, int64_t part, int64_t first, int64_t end);
    float (*exponentials)(int64_t repeats);  // sum of `repeats` times CHAINS vectors of exponentials, in registers
};

// At least `bytes` of memory of this thread, which keeps it until it ends; `which` is 0 or 1.
void *thread_memory(int which, int64_t bytes);

extern "C" const Kernels *arm_kernels_plain();
extern "C" const Kernels *arm_kernels_avx2();
extern "C" const Kernels *arm_kernels_avx512();
