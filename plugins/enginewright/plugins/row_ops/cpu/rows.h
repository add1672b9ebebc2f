// The kernels over rows, for the vectors of an instruction set (plugins/cpu/vectors.h).
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "vectors.h"

namespace enginewright::row_ops {
namespace {

constexpr size_t kSumLanes = 16;

// Calls f(at, count) over k numbers in vectors; the last may hold fewer than a vector has.
template <class Isa, class F>
[[gnu::always_inline]] inline void each_vector(size_t k, const F& f) {
    size_t i = 0;
    for (; i + Isa::kLanes <= k; i += Isa::kLanes) f(i, Isa::kLanes);
    if (i < k) f(i, k - i);
}

template <class Isa>
[[gnu::always_inline]] inline VecOf<Isa> load_up_to(const float* from, size_t count) {
    return count == Isa::kLanes ? load<Isa>(from) : load_some<Isa>(from, count);
}

template <class Isa>
[[gnu::always_inline]] inline void store_up_to(float* to, VecOf<Isa> v, size_t count) {
    std::memcpy(to, &v, count * sizeof(float));
}

inline float sum_of_lanes(float* lanes) {
    for (size_t width = kSumLanes / 2; width; width /= 2)
        for (size_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

template <class Isa>
void add_rms_norm(const float* x, const float* y, const float* weight, float epsilon, size_t k,
                  float* normed, float* total) {
    VecOf<Isa> squares[kSumLanes / Isa::kLanes] = {};
    each_vector<Isa>(k, [&](size_t i, size_t count) {
        const VecOf<Isa> sum = load_up_to<Isa>(x + i, count) + load_up_to<Isa>(y + i, count);
        VecOf<Isa>& lanes = squares[i % kSumLanes / Isa::kLanes];
        lanes = Isa::fma(sum, sum, lanes);
        store_up_to<Isa>(total + i, sum, count);
    });
    float lanes[kSumLanes];
    std::memcpy(lanes, squares, sizeof(lanes));
    const float mean = sum_of_lanes(lanes) / static_cast<float>(k);
    const float inverse = 1.0f / std::sqrt(mean + epsilon);
    each_vector<Isa>(k, [&](size_t i, size_t count) {
        const VecOf<Isa> scaled = load_up_to<Isa>(total + i, count) * inverse;
        store_up_to<Isa>(normed + i, scaled * load_up_to<Isa>(weight + i, count), count);
    });
}

template <class Isa>
void swiglu(const float* gate_up, size_t k, float* out) {
    each_vector<Isa>(k, [&](size_t i, size_t count) {
        const VecOf<Isa> gate = load_up_to<Isa>(gate_up + i, count);
        const VecOf<Isa> e = exp_of_negative<Isa>(gate < 0.0f ? gate : -gate);
        const VecOf<Isa> sigmoid = (gate < 0.0f ? e : splat<Isa>(1.0f)) / (e + 1.0f);
        const VecOf<Isa> up = load_up_to<Isa>(gate_up + k + i, count);
        store_up_to<Isa>(out + i, gate * sigmoid * up, count);
    });
}

template <class Isa>
float peak(const float* x, size_t n) {
    VecOf<Isa> most = splat<Isa>(-std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + Isa::kLanes <= n; i += Isa::kLanes) {
        const VecOf<Isa> v = load<Isa>(x + i);
        most = v > most ? v : most;
    }
    float lanes[Isa::kLanes];
    store<Isa>(lanes, most);
    for (size_t width = Isa::kLanes / 2; width; width /= 2)
        for (size_t lane = 0; lane < width; ++lane)
            lanes[lane] = std::max(lanes[lane], lanes[lane + width]);
    for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    return lanes[0];
}

template <class Isa>
void peaks(const float* x, size_t n, float* peaks) {
    for (size_t i = 0; i < n; i += kPeak) *peaks++ = peak<Isa>(x + i, std::min(kPeak, n - i));
}

// In pieces short enough to be summed in float.
constexpr size_t kPiece = 64 * kSumLanes;

template <class Isa>
double sum_of_exponentials(const float* x, size_t n, float highest) {
    double total = 0;
    for (; n; x += std::min(kPiece, n), n -= std::min(kPiece, n)) {
        VecOf<Isa> sums[kSumLanes / Isa::kLanes] = {};
        each_vector<Isa>(std::min(kPiece, n), [&](size_t i, size_t count) {
            const VecOf<Isa> v = load_up_to<Isa>(x + i, count);
            VecOf<Isa> e = exp_of_negative<Isa>(v - highest) + (v - v);
            if (count < Isa::kLanes) {
                float some[Isa::kLanes] = {};
                store_up_to<Isa>(some, e, count);
                e = load<Isa>(some);
            }
            sums[i % kSumLanes / Isa::kLanes] += e;
        });
        float lanes[kSumLanes];
        std::memcpy(lanes, sums, sizeof(lanes));
        total += sum_of_lanes(lanes);
    }
    return total;
}

template <class Isa>
constexpr Kernels kernels() {
    return {Isa::kName, add_rms_norm<Isa>, swiglu<Isa>, peaks<Isa>, sum_of_exponentials<Isa>};
}

}  // namespace
}  // namespace enginewright::row_ops
