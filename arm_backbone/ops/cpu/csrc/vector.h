// Vectors of LANES floats for one instruction set, and the elementary functions of the scan.
// Compiled once for each instruction set: everything here has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // both in the compiler's own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // SSE2, NEON, or whatever the compiler generates
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float unaligned_vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec splat(float x) { return x - vec{}; }
INLINE vec load(const float *p) { return *reinterpret_cast<const unaligned_vec *>(p); }
INLINE void store(float *p, vec x) { *reinterpret_cast<unaligned_vec *>(p) = x; }

// The first `count` of LANES floats, followed by zeros.
INLINE vec load_some(const float *p, int count) {
    if (count >= LANES) return load(p);
    vec x = {};
    std::memcpy(&x, p, count * sizeof(float));
    return x;
}

INLINE void store_some(float *p, vec x, int count) {
    if (count >= LANES)
        store(p, x);
    else
        std::memcpy(p, &x, count * sizeof(float));
}

// bfloat16: the upper half of a float.
struct bf16 {
    uint16_t bits;
};
typedef uint16_t half_vec __attribute__((vector_size(LANES * 2)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));

// Between 16-bit and 32-bit integers; compilers turn __builtin_convertvector into several instructions.
INLINE uvec widen(half_vec x) {
#if defined(__AVX512F__)
    return (uvec)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
    return (uvec)_mm256_cvtepu16_epi32((__m128i)x);
#else
    return __builtin_convertvector(x, uvec);
#endif
}

INLINE half_vec narrow(uvec x) {
#if defined(__AVX512F__)
    return (half_vec)_mm512_cvtepi32_epi16((__m512i)x);
#else
    return __builtin_convertvector(x, half_vec);
#endif
}

INLINE vec load_some(const bf16 *p, int count) {
    half_vec x = {};
    if (count >= LANES)
        std::memcpy(&x, p, sizeof(x));  // of a fixed size: one instruction
    else
        std::memcpy(&x, p, count * sizeof(bf16));
    return reinterpret_cast<vec>(widen(x) << 16);
}

INLINE void store_some(bf16 *p, vec x, int count) {
    const uvec bits = reinterpret_cast<uvec>(x);
    const uvec nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // ties to even
    const half_vec half = narrow(x == x ? nearest : uvec{} + 0x7fc0);
    if (count >= LANES)
        std::memcpy(p, &half, sizeof(half));
    else
        std::memcpy(p, &half, count * sizeof(bf16));
}

INLINE vec choose(ivec condition, vec yes, vec no) { return condition ? yes : no; }
// The smaller or larger of a and a bound; a NaN in a stays NaN, since x86 then returns the second operand. Compilers
// turn the comparison into two instructions.
INLINE vec at_most(vec a, vec bound) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)bound, (__m512)a);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)bound, (__m256)a);
#else
    return choose(a > bound, bound, a);
#endif
}

INLINE vec at_least(vec a, vec bound) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)bound, (__m512)a);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)bound, (__m256)a);
#else
    return choose(a < bound, bound, a);
#endif
}

// While it exists, this thread flushes denormals (below 1e-38) to 0: decaying states become denormal, which is slow.
struct FlushTiny {
#if defined(__SSE__)
    const unsigned before = _mm_getcsr();
    FlushTiny() { _mm_setcsr(before | 0x8040); }  // FTZ for results, DAZ for inputs
    ~FlushTiny() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushTiny() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" : : "r"(before | 1 << 24));
    }
    ~FlushTiny() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

// 2^f for f in [-0.5, 0.5]: a polynomial fitted with its constant fixed at 1, since errors of decays near 1 accumulate
// over thousands of steps.
INLINE vec exp2_fraction(vec f) {
    vec p = splat(1.326472731e-03f);
    p = p * f + splat(9.671512991e-03f);
    p = p * f + splat(5.550733581e-02f);
    p = p * f + splat(2.402224243e-01f);
    p = p * f + splat(6.931470037e-01f);
    return p * f + splat(1.0f);
}

// 2^x with a relative error below 2e-7 for a finite x; at most 2^-126 below -126, infinity from 128 on.
INLINE vec exp2_polynomial(vec x) {
#if defined(__AVX512F__)
    const vec whole = (vec)_mm512_roundscale_ps((__m512)x, 8);
    return (vec)_mm512_scalef_ps((__m512)exp2_fraction(x - whole), (__m512)whole);
#else
    x = at_most(at_least(x, splat(-126.0f)), splat(128.0f));
    const vec shifted = x + splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
    const vec fraction = exp2_fraction(x - (shifted - splat(12582912.0f)));
    return reinterpret_cast<vec>(reinterpret_cast<ivec>(fraction) + (reinterpret_cast<ivec>(shifted) << 23));
#endif
}

constexpr float FAR = 1e9f;  // where an exponent's size no longer matters

// 2^(a * b) for |a|, |b| up to FAR, with the same error, for loops limited by multiplications: one multiplication fewer
// and more instructions of other kinds. An overflow has any sign.
INLINE vec exp2_product(vec a, vec b) {
#if defined(__AVX512F__)
    const vec powers = {1.00000000e+00f, 1.04427373e+00f, 1.09050775e+00f, 1.13878858e+00f, 1.18920708e+00f, 1.24185777e+00f,
                        1.29683959e+00f, 1.35425556e+00f, 1.41421354e+00f, 1.47682619e+00f, 1.54221082e+00f, 1.61049032e+00f,
                        1.68179286e+00f, 1.75625217e+00f, 1.83400810e+00f, 1.91520655e+00f};  // 2^(i / 16)
    const vec magic = splat(786432.0f);  // 1.5 * 2^19: adding it rounds to sixteenths, which the lowest bits count
    const vec shifted = (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)magic), near = shifted - magic;
    const vec power = (vec)_mm512_permutexvar_ps((__m512i)shifted, (__m512)powers);
    const vec f = (vec)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)near);
    // 2^f - 1 as a cubic without a constant, again because of decays near 1
    const vec cubic = ((splat(5.550231040e-02f) * f + splat(2.402339876e-01f)) * f + splat(6.931471825e-01f)) * f;
    return (vec)_mm512_scalef_ps((__m512)(power * cubic + power), (__m512)near);
#else
    return exp2_polynomial(a * b);
#endif
}

constexpr float LOG2E = 1.44269504088896340736f;

// x with its size limited; NaN stays NaN.
INLINE vec limited(vec x, float size) { return at_most(at_least(x, splat(-size)), splat(size)); }

INLINE vec expv(vec x) { return exp2_product(limited(x, 200.0f), splat(LOG2E)); }  // e^200 is infinite in float32

// log(1 + z) for z in [0, 1] with a relative error below 2e-7: z times a polynomial fitted with its constant set to 1.
INLINE vec log1p_unit(vec z) {
    vec p = splat(5.364822784e-03f);
    p = p * z + splat(-3.006578612e-02f);
    p = p * z + splat(7.920452555e-02f);
    p = p * z + splat(-1.375380150e-01f);
    p = p * z + splat(1.915365455e-01f);
    p = p * z + splat(-2.485716357e-01f);
    p = p * z + splat(3.332132261e-01f);
    p = p * z + splat(-4.999964796e-01f);
    return (p * z + splat(1.0f)) * z;
}

INLINE vec magnitude(vec x) { return reinterpret_cast<vec>(reinterpret_cast<ivec>(x) & 0x7fffffff); }

// 1 / x for x from 1 on, faster than a division: an estimate of 14 bits and one step of Newton's method. Above 2^126 the
// result is tiny and inexact, at infinity 0.
INLINE vec reciprocal(vec x) {
#if defined(__AVX512F__)
    const vec near = (vec)_mm512_rcp14_ps((__m512)x);
    return near + near * (splat(1.0f) - at_most(x, splat(8.507059173e37f)) * near);
#else
    return splat(1.0f) / x;
#endif
}

INLINE vec softplus(vec x, vec &slope) {
    const vec z = expv(-magnitude(x));
    slope = choose(x < vec{}, z, splat(1.0f)) * reciprocal(splat(1.0f) + z);  // the sigmoid
    return at_least(x, vec{}) + log1p_unit(z);
}

INLINE vec softplus(vec x) {
    vec slope;
    return softplus(x, slope);
}

INLINE vec sigmoid(vec x) { return reciprocal(splat(1.0f) + expv(-x)); }
INLINE vec silu(vec x) { return x * sigmoid(x); }

// Adds the halves of a and b and interleaves them: (a0 + aH, b0 + bH, a1 + aH+1, ...) with H = LANES / 2.
template <int... I>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
    typedef Indices<I...> type;
};

template <int... I>
INLINE vec fold(vec a, vec b, Indices<I...>) {
    const vec low = __builtin_shufflevector(a, b, (I % 2 ? LANES + I / 2 : I / 2)...);
    const vec high = __builtin_shufflevector(a, b, (I % 2 ? LANES + LANES / 2 + I / 2 : LANES / 2 + I / 2)...);
    return low + high;
}

INLINE vec fold(vec a, vec b) { return fold(a, b, typename Count<LANES>::type()); }

// Swaps the lanes that have bit STEP with the rows that have it.
template <int STEP, int... I>
INLINE void exchange(vec *rows, Indices<I...>) {
    for (int r = 0; r < LANES; r++)
        if (!(r & STEP)) {
            const vec a = rows[r], b = rows[r + STEP];
            rows[r] = __builtin_shufflevector(a, b, (I & STEP ? LANES + I - STEP : I)...);
            rows[r + STEP] = __builtin_shufflevector(a, b, (I & STEP ? LANES + I : I + STEP)...);
        }
}

// Transposes LANES vectors of LANES floats.
template <int STEP = LANES / 2>
INLINE void transpose_vectors(vec *rows) {
    exchange<STEP>(rows, typename Count<LANES>::type());
    if constexpr (STEP > 1) transpose_vectors<STEP / 2>(rows);
}

// Sums of the lanes of LANES vectors: element n of the result is the sum over row(n).
template <int N, typename Row>
INLINE vec lane_sums(const Row &row, int first = 0, int stride = 1) {
    if constexpr (N == 1)
        return row(first);
    else  // the lowest bit of a position separates the pair that is folded last
        return fold(lane_sums<N / 2>(row, first, stride * 2), lane_sums<N / 2>(row, first + stride, stride * 2));
}

}  // namespace
