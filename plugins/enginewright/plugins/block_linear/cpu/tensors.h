// What the kernels of BlockLinear take: y [M, N] = x [M, K] W^T + bias, W [N, K] in blocks along K.
//
// | tensor      | shape                            | type    | meaning                          |
// |-------------|----------------------------------|---------|----------------------------------|
// | codes       | [N, K / block, block * bits / 8] | uint8   | 4 bits: lower half of byte first |
// | scales      | [N, K / block]                   | T       | scale * (code - zero) + offset   |
// | zero_points | [N, ceil(K / block * bits / 8)]  | uint8   | optional, as codes; else `zero`  |
// | offsets     | [N, K / block]                   | T       | optional, else 0                 |
// | bias        | [N]                              | float32 | optional, else 0                 |
//
// T is float16 or float32.
//
// x is rounded: against 8-bit codes to 16 bits, x = scale of the row * code; against 4-bit codes to
// 8 bits in groups of 16 along K, x = scale of the row * multiplier of the group * code. All but
// the scale are integers, so a product stays one until it meets the scale of its block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace enginewright {

constexpr size_t kGroup = 16;
// Kernels take up to four groups at a time, so rows of rounded activations are padded to that.
constexpr size_t kPadding = 4 * kGroup;
// Sums over blocks are padded with zeros to this many.
constexpr size_t kBlockPadding = 8;
constexpr int kLargestByte = 127;
constexpr int kLargestWord = 32767;
// Of a row whose scale is below this, 1 / scale is no number: its values count as 0.
constexpr float kSmallestScale = 1e-36f;

struct Weights {
    const uint8_t* codes;
    const void* scales;
    const uint8_t* zero_points;
    const void* offsets;
    const float* bias;
    size_t n, k, bits, block;
    size_t blocks;          // of a row
    size_t row_bytes;       // of codes
    size_t zero_row_bytes;  // of zero_points
    int zero;
    bool half;  // T is float16
};

// | tensor      | shape                | meaning                                        |
// |-------------|----------------------|--------------------------------------------------|
// | bytes       | [M, padded]          | codes against 4 bits, in the kernels' order    |
// | words       | [M, padded]          | codes against 8 bits, else multipliers         |
// | sums        | [M, padded_blocks]   | of x / scale over each block of the weights    |
// | scales      | [M]                  |                                                |
struct Activations {
    int8_t* bytes;
    int16_t* words;
    float* sums;
    float* scales;
    size_t padded, padded_blocks;
};

constexpr size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// The kernels of one instruction set. Every element of y is summed in one order, whatever M is and
// however the work is split, so a row's result does not depend on the batch that it is in.
struct Kernels {
    const char* name;
    // Rounds row m of x.
    void (*round_row)(const float* x, const Weights& w, const Activations& a, size_t m);
    // Computes y [m0:m1, n0:n1]; rows of y are N apart.
    void (*multiply)(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1,
                     size_t n0, size_t n1);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
#endif

}  // namespace enginewright
