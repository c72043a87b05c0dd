// Compares the CPU kernels with plain loops in double, outside of Python: for processors that are only emulated.
// Usage: check ISA (0 plain, 1 AVX2, 2 AVX-512). Prints the largest relative deviation of each result.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels.h"

extern "C" {
int64_t arm_best_isa();
const Kernels *arm_kernels(int64_t isa);
int64_t arm_parts(const Kernels *, int64_t rows, int64_t channels, int64_t threads);
void arm_scan_forward(const Kernels *, const ScanForward *, int64_t threads, void *parallel);
void arm_scan_backward(const Kernels *, const ScanBackward *, int64_t threads, void *parallel);
void arm_conv(const Kernels *, const Conv *, int64_t backward, int64_t threads, void *parallel);
}

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

static std::mt19937 generator(0);

static Floats normal(size_t count, float scale = 1) {
    std::normal_distribution<float> draw;
    Floats values(count);
    for (float &value : values) value = draw(generator) * scale;
    return values;
}

static bool failed = false;

static void compare(const char *name, const Floats &result, const Doubles &expected) {
    double largest = 0, deviation = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        largest = std::fmax(largest, std::fabs(expected[i]));
        deviation = std::fmax(deviation, std::fabs(result[i] - expected[i]));
    }
    std::printf("%-12s %.1e\n", name, deviation / largest);
    if (!(deviation <= 3e-6 * largest)) failed = true;
}

// The sum over the parts of the first dimension of a result.
static Floats sum(const Floats &parts, size_t size) {
    Floats result(size);
    for (size_t i = 0; i < parts.size(); i++) result[i % size] += parts[i];
    return result;
}

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

int main(int, char **argv) {
    const int64_t isa = std::atoi(argv[1]);
    if (isa > arm_best_isa()) return std::puts("no such instruction set here"), 3;
    const Kernels *kernels = arm_kernels(isa);
    const int64_t B = 2, K = 2, L = 75, D = 70, N = 17, W = 4, S = (L + SEGMENT - 1) / SEGMENT;
    const int64_t P = arm_parts(kernels, B * K, D, 8);
    const Floats u = normal(B * K * L * D), delta = normal(B * K * L * D, 2), b = normal(B * K * L * N),
                 c = normal(B * K * L * N), skip = normal(K * D), bias = normal(K * D), grad = normal(B * L * D);
    Floats A = normal(K * N * D);
    for (float &a : A) a = -std::fabs(a);
    std::vector<int64_t> orders(K * L);
    for (int64_t k = 0; k < K; k++)
        for (int64_t t = 0; t < L; t++) orders[k * L + t] = (t * (k ? 31 : 1) + 5 * k) % L;  // 31 and 75 share no factor

    Doubles y(B * L * D), du(u.size()), dd(u.size()), db(b.size()), dc(c.size()), dA(A.size()), ds(K * D), dbias(K * D);
    for (int64_t image = 0; image < B; image++)
        for (int64_t k = 0; k < K; k++)
            for (int64_t d = 0; d < D; d++) {
                const int64_t at = k * B + image;
                Doubles h((L + 1) * N), g(N);
                for (int64_t t = 0; t < L; t++) {
                    const int64_t token = orders[k * L + t], i = (at * L + token) * D + d, r = (at * L + token) * N;
                    const double raw = (double)delta[i] + bias[k * D + d], step = std::log1p(std::exp(raw));
                    double sum = (double)skip[k * D + d] * u[i];
                    for (int64_t n = 0; n < N; n++) {
                        h[(t + 1) * N + n] = std::exp(step * A[(k * D + d) * N + n]) * h[t * N + n] + step * u[i] * b[r + n];
                        sum += h[(t + 1) * N + n] * c[r + n];
                    }
                    y[(image * L + token) * D + d] += sum / K;
                }
                for (int64_t t = L - 1; t >= 0; t--) {
                    const int64_t token = orders[k * L + t], i = (at * L + token) * D + d, r = (at * L + token) * N;
                    const double raw = (double)delta[i] + bias[k * D + d], step = std::log1p(std::exp(raw));
                    const double dy = (double)grad[(image * L + token) * D + d] / K;
                    double to_step = 0, to_input = 0;
                    for (int64_t n = 0; n < N; n++) {
                        const double a = A[(k * D + d) * N + n], decay = std::exp(step * a);
                        g[n] += dy * c[r + n];
                        dc[r + n] += dy * h[(t + 1) * N + n];
                        db[r + n] += g[n] * step * u[i];
                        to_input += g[n] * b[r + n];
                        g[n] *= decay;
                        to_step += g[n] * h[t * N + n] * a;
                        dA[(k * D + d) * N + n] += g[n] * h[t * N + n] * step;
                    }
                    du[i] = to_input * step + dy * skip[k * D + d];
                    dd[i] = (to_step + to_input * u[i]) * sigmoid(raw);
                    ds[k * D + d] += dy * u[i];
                    dbias[k * D + d] += dd[i];
                }
            }
    const Scan scan = {B,        K,        L,           D,           N,           1, 0, 0, N, N, u.data(), delta.data(), A.data(),
                       b.data(), c.data(), skip.data(), bias.data(), orders.data()};
    Floats out(B * L * D), saved((S + 1) * B * K * N * D);
    const ScanForward forward = {scan, out.data(), saved.data(), 1};
    arm_scan_forward(kernels, &forward, 2, nullptr);
    compare("y", out, y);
    Floats gu(u.size()), gd(u.size()), gb(P * b.size()), gc(P * c.size()), gA(B * A.size()), gs(B * K * D), gbias(B * K * D);
    const ScanBackward backward = {scan,      grad.data(), saved.data(), gu.data(),    gd.data(), gb.data(),
                                   gc.data(), gA.data(),   gs.data(),    gbias.data(), P};
    arm_scan_backward(kernels, &backward, 2, nullptr);
    compare("grad u", gu, du);
    compare("grad delta", gd, dd);
    compare("grad B", sum(gb, b.size()), db);
    compare("grad C", sum(gc, c.size()), dc);
    compare("grad A", sum(gA, A.size()), dA);
    compare("grad D", sum(gs, K * D), ds);
    compare("grad bias", sum(gbias, K * D), dbias);

    const Floats x = normal(B * L * D), weight = normal(K * W * D), grad_out = normal(B * K * L * D);
    Doubles o(B * K * L * D), dx(x.size()), dw(weight.size()), dcb(K * D);
    for (int64_t image = 0; image < B; image++)
        for (int64_t k = 0; k < K; k++)
            for (int64_t d = 0; d < D; d++)
                for (int64_t t = 0; t < L; t++) {
                    double pre = bias[k * D + d];
                    for (int64_t j = 0; j < W; j++)
                        if (t - W + 1 + j >= 0)
                            pre += (double)x[(image * L + orders[k * L + t - W + 1 + j]) * D + d] * weight[(k * D + d) * W + j];
                    const int64_t i = ((k * B + image) * L + orders[k * L + t]) * D + d;
                    const double s = sigmoid(pre), g = grad_out[i] * s * (1 + pre * (1 - s));
                    o[i] = pre * s;
                    dcb[k * D + d] += g;
                    for (int64_t j = 0; j < W; j++)
                        if (t - W + 1 + j >= 0) {
                            const int64_t source = (image * L + orders[k * L + t - W + 1 + j]) * D + d;
                            dx[source] += g * weight[(k * D + d) * W + j];
                            dw[(k * D + d) * W + j] += g * x[source];
                        }
                }
    Floats conv_out(o.size()), gx(x.size()), gw(B * weight.size()), gcb(B * K * D);
    const Conv conv = {B, K, L, D, W, D, 0, x.data(), weight.data(), bias.data(), orders.data(), conv_out.data(), grad_out.data(), gx.data(), gw.data(), gcb.data()};
    arm_conv(kernels, &conv, 0, 2, nullptr);
    arm_conv(kernels, &conv, 1, 2, nullptr);
    compare("conv", conv_out, o);
    compare("grad x", gx, dx);
    compare("grad weight", sum(gw, weight.size()), dw);
    compare("grad bias", sum(gcb, K * D), dcb);
    return failed;
}
