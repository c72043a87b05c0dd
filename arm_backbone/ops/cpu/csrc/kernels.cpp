// The kernels of one instruction set; compiled once for each.
//
// Channels last: a token is a row of memory, SIMD vectors hold channels, and a scan order is a sequence of row indices.
// The recurrence needs no reduction. Legend: kernels.h.

#include "conv.h"
#include "gate_norm.h"
#include "scan_backward.h"
#include "scan_forward.h"

namespace {

// CHAINS chains of exponentials in registers, with the variant that is fastest alone; reads and writes no memory.
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
            x[i] = x[i] * splat(0.9999f);  // keeps the compiler from hoisting the exponential out of the loop
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
