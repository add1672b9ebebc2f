// The kernels for any processor, in plain C++: the same rounding, sums in the order of K.

#include <algorithm>
#include <cmath>
#include <vector>

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

void row(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1, size_t n) {
    std::vector<float> scales(w.blocks), constants(w.blocks);
    for (size_t b = 0; b < w.blocks; ++b) {
        scales[b] = value_at(w.scales, n * w.blocks + b, w.half);
        constants[b] = block_constant(w, n, b);
    }
    const uint8_t* codes = w.codes + n * w.row_bytes;
    for (size_t m = m0; m < m1; ++m) {
        const int8_t* bytes = a.bytes + m * a.padded;
        const int16_t* words = a.words + m * a.padded;
        float total = 0;
        for (size_t b = 0; b < w.blocks; ++b)
            total += constants[b] * a.sums[m * a.padded_blocks + b];
        for (size_t k = 0; k < w.k; k += kGroup) {
            int product = 0;
            for (size_t i = k; i < k + kGroup; ++i)
                product += code_at(codes, i, w.bits) * (w.bits == 4 ? bytes[i] : words[i]);
            if (w.bits == 4) product *= words[k / kGroup];
            total += static_cast<float>(product) * scales[k / w.block];
        }
        y[m * w.n + n] = a.scales[m] * total + (w.bias ? w.bias[n] : 0.0f);
    }
}

void multiply(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1, size_t n0,
              size_t n1) {
    for (size_t n = n0; n < n1; ++n) row(w, a, y, m0, m1, n);
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
    float* sums = a.sums + m * a.padded_blocks;
    const int steps = w.bits == 4 ? kLargestByte * kLargestWord : kLargestWord;
    const float scale = largest_magnitude(x, w.k) / static_cast<float>(steps);
    const bool any = scale > kSmallestScale && std::isfinite(scale);
    const float per_code = any ? 1 / (scale * kLargestByte) : 0;
    a.scales[m] = scale;
    std::fill_n(sums, a.padded_blocks, 0.0f);
    for (size_t g = 0; g < w.k / kGroup; ++g) {
        const float* values = x + g * kGroup;
        int multiplier = any, sum = 0;
        if (w.bits == 4) {
            const float most = any ? std::ceil(largest_magnitude(values, kGroup) * per_code) : 0;
            multiplier = std::min(kLargestWord, static_cast<int>(most));
            a.words[m * a.padded + g] = static_cast<int16_t>(multiplier);
        }
        const float inverse = multiplier ? 1 / (scale * static_cast<float>(multiplier)) : 0;
        for (size_t i = 0; i < kGroup; ++i) {
            const size_t at = m * a.padded + g * kGroup + i;
            const int bound = w.bits == 4 ? kLargestByte : kLargestWord;
            const int code = multiplier ? round_to(values[i], inverse, bound) : 0;
            if (w.bits == 4)
                a.bytes[at] = static_cast<int8_t>(code);
            else
                a.words[at] = static_cast<int16_t>(code);
            sum += code;
        }
        sums[g * kGroup / w.block] += static_cast<float>(multiplier * sum);
    }
}

}  // namespace

const Kernels kPortable = {"portable", round_row, multiply};

}  // namespace enginewright
