// Compares the CPU kernels with plain loops in double, without Python, so that it can run in an emulator.
// Usage: check ISA (0 plain, 1 AVX2, 2 AVX-512). Prints each result's largest deviation, relative to its largest value.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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
void arm_gate(const Kernels *, const Gate *, int64_t threads, void *parallel);
void arm_norm(const Kernels *, const Norm *, int64_t threads, void *parallel);
void arm_norm_backward(const Kernels *, const NormBackward *, int64_t threads, void *parallel);
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

static void compare(const char *name, const Floats &result, const Doubles &expected, double tolerance = 3e-6) {
    double largest = 0, deviation = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        largest = std::fmax(largest, std::fabs(expected[i]));
        deviation = std::fmax(deviation, std::fabs(result[i] - expected[i]));
    }
    std::printf("%-12s %.1e\n", name, deviation / largest);
    if (!(deviation <= tolerance * largest)) failed = true;
}

// Sums a result of shape (parts, size) over the parts.
static Floats sum(const Floats &parts, size_t size) {
    Floats result(size);
    for (size_t i = 0; i < parts.size(); i++) result[i % size] += parts[i];
    return result;
}

// float32 to bfloat16 by truncation, and back.
static uint16_t to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits >> 16;
}

static float from_half(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
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
                        h[(t + 1) * N + n] = std::exp(step * A[(k * N + n) * D + d]) * h[t * N + n] + step * u[i] * b[r + n];
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
                        const double a = A[(k * N + n) * D + d], decay = std::exp(step * a);
                        g[n] += dy * c[r + n];
                        dc[r + n] += dy * h[(t + 1) * N + n];
                        db[r + n] += g[n] * step * u[i];
                        to_input += g[n] * b[r + n];
                        g[n] *= decay;
                        to_step += g[n] * h[t * N + n] * a;
                        dA[(k * N + n) * D + d] += g[n] * h[t * N + n] * step;
                    }
                    du[i] = to_input * step + dy * skip[k * D + d];
                    dd[i] = (to_step + to_input * u[i]) * sigmoid(raw);
                    ds[k * D + d] += dy * u[i];
                    dbias[k * D + d] += dd[i];
                }
            }
    const Scan scan = {B,        K,        L,           D,           N,           0, 1, K, 0, 0, 0, N, N, u.data(), delta.data(), A.data(),
                       b.data(), c.data(), skip.data(), bias.data(), orders.data()};
    Floats out(B * L * D), saved((S + 1) * B * K * N * D);
    const ScanForward forward = {scan, out.data(), saved.data(), 1, nullptr, 0};
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

    const int64_t R = B * L;  // rows
    const Floats value = normal(R * D), z = normal(R * D, 3), grad_gated = normal(R * D);
    Doubles gated(R * D), to_value(R * D), to_z(R * D);
    for (int64_t i = 0; i < R * D; i++) {
        const double slope = sigmoid(z[i]);
        gated[i] = value[i] * z[i] * slope;
        to_value[i] = grad_gated[i] * z[i] * slope;
        to_z[i] = grad_gated[i] * value[i] * slope * (1 + z[i] * (1 - slope));
    }
    Floats gate_out(R * D), gate_value(R * D), gate_z(R * D);
    const Gate gate = {R, D, 0, D, D, D, 0, 0, nullptr, value.data(), z.data(), gate_out.data(), nullptr};
    const Gate gate_backward = {R, D, D, D, D, D, D, 0, grad_gated.data(), value.data(), z.data(), gate_value.data(), gate_z.data()};
    arm_gate(kernels, &gate, 2, nullptr);
    arm_gate(kernels, &gate_backward, 2, nullptr);
    compare("gate", gate_out, gated);
    compare("grad value", gate_value, to_value);
    compare("grad z", gate_z, to_z);

    const Floats gain = normal(D), shift = normal(D), grad_total = normal(R * D);
    std::vector<uint16_t> branch(R * D), grad_norm(R * D), norm_out(R * D), to_branch(R * D);
    for (int64_t i = 0; i < R * D; i++) branch[i] = to_half(z[i]), grad_norm[i] = to_half(grad_gated[i]);
    Doubles total(R * D), normed(R * D), to_x(R * D), to_gain(D), to_shift(D);
    const double eps = 1e-5;
    for (int64_t r = 0; r < R; r++) {
        double mean = 0, squares = 0, g_mean = 0, g_product = 0;
        const int64_t row = r * D;
        for (int64_t d = 0; d < D; d++) mean += total[row + d] = (double)value[row + d] + from_half(branch[row + d]);
        mean /= D;
        for (int64_t d = 0; d < D; d++) squares += (total[row + d] - mean) * (total[row + d] - mean);
        const double factor = 1 / std::sqrt(squares / D + eps);
        for (int64_t d = 0; d < D; d++) {
            const double n = (total[row + d] - mean) * factor, g = from_half(grad_norm[row + d]);
            normed[row + d] = n * gain[d] + shift[d];
            g_mean += g * gain[d] / D;
            g_product += g * gain[d] * n / D;
            to_gain[d] += g * n;
            to_shift[d] += g;
        }
        for (int64_t d = 0; d < D; d++) {
            const double n = (total[row + d] - mean) * factor;
            to_x[row + d] = (from_half(grad_norm[row + d]) * gain[d] - g_mean - n * g_product) * factor + grad_total[row + d];
        }
    }
    Floats norm_total(R * D), mean(R), factor(R), norm_x(R * D), sums(2 * 2 * D), halves(R * D);
    const Norm norm = {R,           D,   1, D, D, 1, value.data(), branch.data(), gain.data(), shift.data(), norm_total.data(),
                       norm_out.data(), mean.data(), factor.data(), (float)eps};
    arm_norm(kernels, &norm, 2, nullptr);
    compare("sum", norm_total, total);
    for (int64_t i = 0; i < R * D; i++) halves[i] = from_half(norm_out[i]);
    compare("norm", halves, normed, 4e-3);
    const NormBackward norm_backward = {R, D, 1, D, D, D, 1, grad_norm.data(), grad_total.data(), norm_total.data(), gain.data(),
                                        mean.data(), factor.data(), norm_x.data(), to_branch.data(), sums.data()};
    arm_norm_backward(kernels, &norm_backward, 2, nullptr);
    compare("grad sum", norm_x, to_x);
    for (int64_t i = 0; i < R * D; i++) halves[i] = from_half(to_branch[i]);
    compare("grad branch", halves, to_x, 4e-3);
    const Floats gradients = sum(sums, 2 * D);
    compare("grad gain", Floats(gradients.begin(), gradients.begin() + D), to_gain);
    compare("grad shift", Floats(gradients.begin() + D, gradients.end()), to_shift);
    return failed;
}
