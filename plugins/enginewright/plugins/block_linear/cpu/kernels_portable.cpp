// The kernels for any processor, in plain C++: the same rounding, sums in the order of K.

#include <algorithm>
#include <cmath>

#include "tensors.h"

namespace enginewright {
namespace {

int code_at(const uint8_t* row, size_t index, size_t bits) {
    return bits == 8 ? row[index] : row[index / 2] >> (index % 2 * 4) & 15;
}

float from_half(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    float value = INFINITY;
    if (exponent == 0)
        value = std::ldexp(static_cast<float>(fraction), -24);
    else if (exponent < 31)
        value = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    else if (fraction)
        value = NAN;
    return half & 0x8000 ? -value : value;
}

float value_at(const void* values, size_t index, bool half) {
    return half ? from_half(static_cast<const uint16_t*>(values)[index])
                : static_cast<const float*>(values)[index];
}

// What multiplies the sum of x over block b of row n: offset - scale * zero.
float block_constant(const Weights& w, size_t n, size_t b) {
    const size_t index = n * w.blocks + b;
    int zero = w.zero;
    if (w.zero_points) zero = code_at(w.zero_points + n * w.zero_row_bytes, b, w.bits);
    const float offset = w.offsets ? value_at(w.offsets, index, w.half) : 0.0f;
    return offset - value_at(w.scales, index, w.half) * static_cast<float>(zero);
}

// A row of rounded x: codes, multipliers of groups, and sums over blocks.
struct Row {
    int16_t* codes;
    int16_t* multipliers;
    float* sums;

    Row(const Weights& w, const Activations& a, size_t m)
        : codes(reinterpret_cast<int16_t*>(a.codes + m * bytes(w))),
          multipliers(codes + w.k),
          sums(reinterpret_cast<float*>(multipliers + round_up(w.k / kGroup, 2))) {}

    static size_t bytes(const Weights& w) {
        const size_t words = w.k + round_up(w.k / kGroup, 2);
        return round_up(words * sizeof(int16_t) + w.blocks * sizeof(float), 32);
    }
    static size_t round_up(size_t value, size_t multiple) {
        return (value + multiple - 1) / multiple * multiple;
    }
};

float product(const Weights& w, const Row& x, size_t n) {
    const uint8_t* codes = w.codes + n * w.row_bytes;
    float total = 0;
    for (size_t b = 0; b < w.blocks; ++b) total += block_constant(w, n, b) * x.sums[b];
    for (size_t b = 0; b < w.blocks; ++b) {
        const float scale = value_at(w.scales, n * w.blocks + b, w.half);
        for (size_t g = b * w.block / kGroup; g < (b + 1) * w.block / kGroup; ++g) {
            int sum = 0;
            for (size_t i = g * kGroup; i < (g + 1) * kGroup; ++i)
                sum += code_at(codes, i, w.bits) * x.codes[i];
            total += static_cast<float>(sum * x.multipliers[g]) * scale;
        }
    }
    return total;
}

void multiply(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
              size_t n0, size_t n1) {
    for (size_t n = n0; n < n1; ++n)
        for (size_t m = m0; m < m1; ++m)
            *y.at(m, n) = a.scales[m] * product(w, Row(w, a, m), n) + (w.bias ? w.bias[n] : 0.0f);
}

float largest_magnitude(const float* x, size_t count) {
    float largest = 0;
    for (size_t i = 0; i < count; ++i) {
        if (std::isnan(x[i])) return x[i];
        largest = std::max(largest, std::fabs(x[i]));
    }
    return largest;
}

int round_to(float value, float inverse, int largest) {
    const float bound = static_cast<float>(largest);
    return static_cast<int>(std::clamp(std::nearbyint(value * inverse), -bound, bound));
}

void round_row(const float* x, const Weights& w, const Activations& a, size_t m) {
    const Row row(w, a, m);
    const int bound = w.bits == 4 ? kLargestByte : kLargestWord;
    const int steps = w.bits == 4 ? kLargestByte * kLargestWord : kLargestWord;
    const float scale = largest_magnitude(x, w.k) / static_cast<float>(steps);
    const bool any = scale > kSmallestScale && std::isfinite(scale);
    const float per_code = any ? 1 / (scale * kLargestByte) : 0;
    a.scales[m] = scale;
    std::fill_n(row.sums, w.blocks, 0.0f);
    for (size_t g = 0; g < w.k / kGroup; ++g) {
        const float* values = x + g * kGroup;
        int multiplier = any, sum = 0;
        if (w.bits == 4) {
            const float most = any ? std::ceil(largest_magnitude(values, kGroup) * per_code) : 0;
            multiplier = std::min(kLargestWord, static_cast<int>(most));
        }
        row.multipliers[g] = static_cast<int16_t>(multiplier);
        const float inverse = multiplier ? 1 / (scale * static_cast<float>(multiplier)) : 0;
        for (size_t i = 0; i < kGroup; ++i) {
            const int code = multiplier ? round_to(values[i], inverse, bound) : 0;
            row.codes[g * kGroup + i] = static_cast<int16_t>(code);
            sum += code;
        }
        row.sums[g * kGroup / w.block] += static_cast<float>(multiplier * sum);
    }
}

}  // namespace

const Kernels kPortable = {"portable", Row::bytes, round_row, multiply};

}  // namespace enginewright
