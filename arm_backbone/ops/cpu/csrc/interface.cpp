// The C interface: chooses the instruction set and distributes tasks over threads. Nothing here depends on torch.
//
// The library needs the C library only: no C++ runtime, so no std::thread, no std::vector, no exceptions. It then runs
// wherever its C library does, and a compiler that brings its own C++ runtime need not build that first.

#include <pthread.h>
#if defined(ARM_X86)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "kernels.h"

namespace {

typedef void (*Parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);  // libgomp's GOMP_parallel

struct Job {
    std::atomic<int64_t> next{0};
    int64_t count;
    void (*task)(const void *, int64_t);
    const void *arguments;
};

void *allocate(int64_t bytes) {
    void *memory = std::malloc(bytes);
    if (!memory) std::abort();  // Python cannot be told here
    return memory;
}

void work(void *data) {
    Job &job = *static_cast<Job *>(data);
    for (int64_t i; (i = job.next++) < job.count;) job.task(job.arguments, i);
}

// Runs tasks 0 to count - 1 on `threads` threads: those of torch's OpenMP runtime if Python found it, so that there is
// only one thread pool; otherwise new ones.
void run(int64_t count, void (*task)(const void *, int64_t), const void *arguments, int64_t threads, void *parallel) {
    Job job;
    job.count = count;
    job.task = task;
    job.arguments = arguments;
    if (threads > count) threads = count;
    if (threads <= 1) {
        work(&job);
    } else if (parallel) {
        reinterpret_cast<Parallel>(parallel)(work, &job, threads, 0);
    } else {
        auto others = static_cast<pthread_t *>(allocate(threads * sizeof(pthread_t)));
        const auto start = [](void *data) -> void * { return work(data), nullptr; };
        int64_t started = 0;  // if the system refuses a thread, fewer do the work
        while (started < threads - 1 && !pthread_create(&others[started], nullptr, start, &job)) started++;
        work(&job);
        for (int64_t i = 0; i < started; i++) pthread_join(others[i], nullptr);
        std::free(others);
    }
}

// What a thread keeps between calls, since allocating new pages each time is slow.
struct Kept {
    void *memory[3];
    int64_t size[3];
};

pthread_key_t kept_key;

void free_kept(void *data) {
    for (void *memory : static_cast<Kept *>(data)->memory) std::free(memory);
    std::free(data);
}

void *kept_memory(int which, int64_t bytes) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, [] { pthread_key_create(&kept_key, free_kept); });
    auto kept = static_cast<Kept *>(pthread_getspecific(kept_key));
    if (!kept) {
        kept = static_cast<Kept *>(std::memset(allocate(sizeof(Kept)), 0, sizeof(Kept)));
        pthread_setspecific(kept_key, kept);
    }
    if (bytes > kept->size[which]) {
        std::free(kept->memory[which]);
        kept->memory[which] = allocate(bytes);
        kept->size[which] = bytes;
    }
    return kept->memory[which];
}

// A call over rows of channels. Each row is cut into `parts`, which are the tasks, in the order of the rows.
template <typename T>
struct Call {
    const Kernels *kernels;
    const T *arguments;
    int64_t channels, parts;
    void (*part)(const Call &, int64_t row, int64_t part, int64_t first, int64_t end);
};

template <typename T>
void run(const Call<T> &call, int64_t rows, int64_t threads, void *parallel) {
    auto task = [](const void *data, int64_t i) {
        const auto &c = *static_cast<const Call<T> *>(data);
        const int64_t part = i % c.parts, groups = (c.channels + c.kernels->group - 1) / c.kernels->group;
        const auto start = [&](int64_t p) { return std::min(groups * p / c.parts * c.kernels->group, c.channels); };
        c.part(c, i / c.parts, part, start(part), start(part + 1));
    };
    run(rows * call.parts, task, &call, threads, parallel);
}

}  // namespace

void *thread_memory(int which, int64_t bytes) { return kept_memory(which, bytes); }

// The best instruction set of this processor and build: 0 plain, 1 AVX2, 2 AVX-512. Not with __builtin_cpu_supports,
// which is part of the compiler's own library.
extern "C" int64_t arm_best_isa() {
#if defined(ARM_X86)
    unsigned a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));  // the registers that the system saves
    if ((saved & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const unsigned avx512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512VL;
    if ((saved & 0xe6) == 0xe6 && (b & avx512) == avx512) return 2;
    if (b & bit_AVX2) return 1;
#endif
    return 0;
}

extern "C" const Kernels *arm_kernels([[maybe_unused]] int64_t isa) {
#if defined(ARM_X86)
    if (isa == 2) return arm_kernels_avx512();
    if (isa == 1) return arm_kernels_avx2();
#endif
    return arm_kernels_plain();
}

// Sizes of the structures that Python fills. Python compares them with its own: an older build would misread them.
extern "C" int64_t arm_layout(int64_t which) {
    const int64_t sizes[] = {sizeof(ScanForward), sizeof(ScanBackward), sizeof(Conv),
                             sizeof(Gate),        sizeof(Norm),         sizeof(NormBackward)};
    return sizes[which];
}

// Number of the first of K orders, each (L), that is not a permutation of 0 to L - 1; -1 if all are. A kernel would
// access memory beyond its tensors at an index out of range, and leave results unwritten at a missing one.
extern "C" int64_t arm_wrong_order(const int64_t *orders, int64_t directions, int64_t length) {
    auto seen = static_cast<char *>(kept_memory(2, length));
    for (int64_t k = 0; k < directions; k++, orders += length) {
        std::memset(seen, 0, length);
        for (int64_t t = 0; t < length; t++) {
            if (orders[t] < 0 || orders[t] >= length || seen[orders[t]]) return k;
            seen[orders[t]] = 1;
        }
    }
    return -1;
}

extern "C" int64_t arm_segment() { return SEGMENT; }

// Number of parts to cut the channels of each of `rows` rows into: the fewest that balance the threads, since long
// stretches of memory are read faster.
extern "C" int64_t arm_parts(const Kernels *kernels, int64_t rows, int64_t channels, int64_t threads) {
    const int64_t groups = (channels + kernels->group - 1) / kernels->group;
    return std::max<int64_t>(1, std::min(groups, threads / std::gcd(rows, threads)));
}

extern "C" void arm_scan_forward(const Kernels *kernels, const ScanForward *f, int64_t threads, void *parallel) {
    const Scan &s = f->scan;
    const Call<ScanForward> call = {kernels, f, s.channels, arm_parts(kernels, s.batch, s.channels, threads),
                                    [](const auto &c, int64_t image, int64_t, int64_t first, int64_t end) {
                                        c.kernels->scan_forward(*c.arguments, image, first, end);
                                    }};
    run(call, s.batch, threads, parallel);
}

extern "C" void arm_scan_backward(const Kernels *kernels, const ScanBackward *g, int64_t threads, void *parallel) {
    const Scan &s = g->scan;
    const Call<ScanBackward> call = {kernels, g, s.channels, g->parts,
                                     [](const auto &c, int64_t row, int64_t part, int64_t first, int64_t end) {
                                         const int64_t directions = c.arguments->scan.directions;
                                         c.kernels->scan_backward(*c.arguments, row / directions, row % directions, part, first,
                                                                  end);
                                     }};
    run(call, s.batch * s.directions, threads, parallel);
}

extern "C" void arm_conv(const Kernels *kernels, const Conv *conv, int64_t backward, int64_t threads, void *parallel) {
    if (conv->channels == 0) return;  // empty tensors have no addresses
    Call<Conv> call = {kernels, conv, conv->channels, arm_parts(kernels, conv->batch, conv->channels, threads), nullptr};
    if (backward)
        call.part = [](const auto &c, int64_t image, int64_t, int64_t first, int64_t end) {
            c.kernels->conv_backward(*c.arguments, image, first, end);
        };
    else
        call.part = [](const auto &c, int64_t image, int64_t, int64_t first, int64_t end) {
            c.kernels->conv_forward(*c.arguments, image, first, end);
        };
    run(call, conv->batch, threads, parallel);
}

namespace {

// Cuts the rows into as many parts as there are threads.
template <typename T>
void run_rows(void (*kernel)(const T &, int64_t, int64_t, int64_t), const T &arguments, int64_t threads, void *parallel) {
    struct RowsCall {
        void (*kernel)(const T &, int64_t, int64_t, int64_t);
        const T &arguments;
        int64_t parts;
    } const call = {kernel, arguments, threads};
    auto task = [](const void *data, int64_t i) {
        const auto &c = *static_cast<const RowsCall *>(data);
        const int64_t rows = c.arguments.rows;
        c.kernel(c.arguments, i, rows * i / c.parts, rows * (i + 1) / c.parts);
    };
    run(threads, task, &call, threads, parallel);
}

}  // namespace

extern "C" void arm_gate(const Kernels *kernels, const Gate *gate, int64_t threads, void *parallel) {
    run_rows(kernels->gate, *gate, threads, parallel);
}

extern "C" void arm_norm(const Kernels *kernels, const Norm *norm, int64_t threads, void *parallel) {
    run_rows(kernels->norm, *norm, threads, parallel);
}

// `sums` has one part per thread.
extern "C" void arm_norm_backward(const Kernels *kernels, const NormBackward *norm, int64_t threads, void *parallel) {
    run_rows(kernels->norm_backward, *norm, threads, parallel);
}

// Computes exponentials only, on every thread, and returns their number (for a benchmark; the sums keep the compiler
// from removing the exponentials).
extern "C" int64_t arm_exp(const Kernels *kernels, int64_t repeats, int64_t threads, void *parallel, float *sums) {
    struct Exponentials {
        const Kernels *kernels;
        int64_t repeats;
        float *sums;
    } const call = {kernels, repeats, sums};
    auto task = [](const void *data, int64_t i) {
        const auto &c = *static_cast<const Exponentials *>(data);
        c.sums[i] = c.kernels->exponentials(c.repeats);
    };
    run(threads, task, &call, threads, parallel);
    return threads * repeats * CHAINS * kernels->lanes;
}
