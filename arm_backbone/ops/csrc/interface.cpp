// The C interface: choice of the instruction set, and tasks over threads. Nothing here depends on torch.

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels.h"

namespace {

typedef void (*Parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);  // libgomp's GOMP_parallel

struct Job {
    std::atomic<int64_t> next{0};
    int64_t count;
    void (*task)(const void *, int64_t);
    const void *arguments;
};

void work(void *data) {
    Job &job = *static_cast<Job *>(data);
    for (int64_t i; (i = job.next++) < job.count;) job.task(job.arguments, i);
}

// Tasks 0 to count - 1 on `threads` threads: those of the OpenMP runtime that torch uses, if Python found it, so that there
// are not two pools; otherwise new ones.
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
        std::vector<std::thread> others;
        for (int64_t i = 1; i < threads; i++) others.emplace_back(work, &job);
        work(&job);
        for (std::thread &other : others) other.join();
    }
}

template <typename T>
struct Call {
    const Kernels *kernels;
    const T *arguments;
    int64_t groups, directions;
};

int64_t groups(const Kernels *kernels, int64_t channels) { return (channels + kernels->group - 1) / kernels->group; }

}  // namespace

// 0 plain, 1 AVX2, 2 AVX-512: the best that this processor has and this build knows.
extern "C" int64_t arm_best_isa() {
#if defined(ARM_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
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

// Of the structures that Python fills: it compares them with its own, as an older build would read other memory.
extern "C" int64_t arm_layout(int64_t which) {
    const int64_t sizes[] = {sizeof(ScanForward), sizeof(ScanBackward), sizeof(Conv)};
    return sizes[which];
}

extern "C" int64_t arm_group(const Kernels *kernels) { return kernels->group; }
extern "C" int64_t arm_segment() { return SEGMENT; }

extern "C" void arm_scan_forward(const Kernels *kernels, const ScanForward *f, int64_t threads, void *parallel) {
    const Call<ScanForward> call = {kernels, f, groups(kernels, f->scan.channels), f->scan.directions};
    auto task = [](const void *data, int64_t i) {
        const auto &c = *static_cast<const Call<ScanForward> *>(data);
        c.kernels->scan_forward(*c.arguments, i / c.groups, i % c.groups);
    };
    run(f->scan.batch * call.groups, task, &call, threads, parallel);
}

extern "C" void arm_scan_backward(const Kernels *kernels, const ScanBackward *g, int64_t threads, void *parallel) {
    const Call<ScanBackward> call = {kernels, g, groups(kernels, g->scan.channels), g->scan.directions};
    auto task = [](const void *data, int64_t i) {
        const auto &c = *static_cast<const Call<ScanBackward> *>(data);
        const int64_t row = i / c.groups;
        c.kernels->scan_backward(*c.arguments, row / c.directions, row % c.directions, i % c.groups);
    };
    run(g->scan.batch * g->scan.directions * call.groups, task, &call, threads, parallel);
}

extern "C" void arm_conv(const Kernels *kernels, const Conv *conv, int64_t backward, int64_t threads, void *parallel) {
    const Call<Conv> call = {kernels, conv, groups(kernels, conv->channels), backward};
    auto task = [](const void *data, int64_t i) {
        const auto &c = *static_cast<const Call<Conv> *>(data);
        (c.directions ? c.kernels->conv_backward : c.kernels->conv_forward)(*c.arguments, i / c.groups, i % c.groups);
    };
    run(conv->batch * call.groups, task, &call, threads, parallel);
}

// Exponentials and nothing else, on every thread: how many (for a benchmark; the sum keeps them from being left out).
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
    return threads * repeats * 8 * (kernels->group / 4);
}
