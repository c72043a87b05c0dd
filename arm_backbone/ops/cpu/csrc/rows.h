// Rows of memory: scratch memory, transposes, segments of a scan order, prefetching. Legend: kernels.h.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

constexpr int GROUP = 64;            // channels processed together: four cache lines per token
constexpr int WIDE = GROUP / LANES;  // vectors in a group

// Room for `count` values in this thread's memory number `which` (0 or 1), from a cache line on. Valid until
// this thread asks for the same number again.
template <typename T>
T *scratch(int which, int64_t count) {
    constexpr int64_t align = 64;
    void *memory = thread_memory(which, count * sizeof(T) + align);
    return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(memory) + align - 1) / align * align);
}

// Copies channels `first` to `end` of a parameter (D, N) to (N, D).
void transpose(const float *from, int64_t D, int64_t N, int64_t first, int64_t end, float *to) {
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = first; c < end; c++) to[n * D + c] = from[c * N + n];
}

// The inverse: (N, D) to (D, N).
void transpose_back(const float *from, int64_t D, int64_t N, int64_t first, int64_t end, float *to) {
    for (int64_t c = first; c < end; c++)
        for (int64_t n = 0; n < N; n++) to[c * N + n] = from[n * D + c];
}

// The tokens of one direction of one image: rows of channels or, with `tokens_last`, columns.
template <typename T>
struct Rows {
    const T *u, *delta;
    const void *B, *C;
    const int64_t *order;

    Rows(const Scan &s, int64_t image, int64_t k) {
        const int64_t at = (k * s.batch + image) * s.length, size = s.half_BC ? sizeof(bf16) : sizeof(float);
        u = static_cast<const T *>(s.u) + (s.shared_u ? image * s.length : at) * s.channels;
        delta = static_cast<const T *>(s.delta) + at * s.channels;
        B = static_cast<const char *>(s.B) + at * (s.tokens_last ? s.states : s.row_B) * size;
        C = static_cast<const char *>(s.C) + at * (s.tokens_last ? s.states : s.row_C) * size;
        order = s.orders + k * s.length;
    }
};

// Up to SEGMENT tokens of a direction, and their B and C as float32, (count, N) each.
struct Segment {
    const int64_t *order;  // indices of the tokens
    int count;
    const int64_t *next;  // indices of the tokens of the segment that is processed next
    int next_count;
    float *B, *C;

    static int64_t memory(int64_t N) { return 2 * SEGMENT * N; }  // floats

    template <typename T>
    Segment(const Scan &s, const Rows<T> &rows, int64_t start, int64_t next_start, float *memory)
        : order(rows.order + start), B(memory), C(memory + SEGMENT * s.states) {
        const auto count_from = [&](int64_t from) { return s.length - from < SEGMENT ? s.length - from : SEGMENT; };
        count = count_from(start);
        const bool more = next_start >= 0 && next_start < s.length;
        next = more ? rows.order + next_start : nullptr;
        next_count = more ? count_from(next_start) : 0;
        if (s.half_BC) {
            gather(s, static_cast<const bf16 *>(rows.B), s.row_B, B);
            gather(s, static_cast<const bf16 *>(rows.C), s.row_C, C);
        } else {
            gather(s, static_cast<const float *>(rows.B), s.row_B, B);
            gather(s, static_cast<const float *>(rows.C), s.row_C, C);
        }
    }

    template <typename T>
    void gather(const Scan &s, const T *from, int64_t row, float *to) const {
        const int64_t N = s.states;
        if (s.tokens_last) {  // few numbers for all channels together
            for (int64_t n = 0; n < N; n++)
                for (int t = 0; t < count; t++) to[t * N + n] = load_some(from + n * s.length + order[t], 1)[0];
            return;
        }
        for (int t = 0; t < count; t++)
            for (int64_t n = 0; n < N; n += LANES) {
                const int lanes = N - n < LANES ? N - n : LANES;
                store_some(to + t * N + n, load_some(from + order[t] * row + n, lanes), lanes);
            }
    }
};

// Prefetches V vectors of a row into the L2 cache, for reading (WRITE 0) or writing (1). The rows of the next
// segment are scattered, so the hardware prefetcher cannot predict them.
template <int V, int WRITE = 0, typename T>
INLINE void prefetch(const T *row) {
    for (int line = 0; line < V * LANES * (int)sizeof(T); line += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(row) + line, WRITE, 2);
}

// A vector of channels of an optional parameter (K, D); zeros if it is missing.
INLINE vec load_optional(const float *p, int64_t at, int lanes) { return p ? load_some(p + at, lanes) : vec{}; }

}  // namespace
