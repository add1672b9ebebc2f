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

// | tensor | shape              | type    | meaning                                              |
// |--------|--------------------|---------|------------------------------------------------------|
// | codes  | [M * bytes_of_row] | uint8   | rounded rows of x, and their sums over parts of a    |
// |        |                    |         | block, in the kernels' own order; 32-byte aligned    |
// | scales | [M]                | float32 |                                                      |
struct Activations {
    uint8_t* codes;
    float* scales;
    size_t rows;  // M
};

// Where a part of a product goes: its rows from m0 on, its columns from n0 on.
struct Result {
    float* data;
    size_t stride;  // from a row to the next
    size_t m0 = 0, n0 = 0;

    float* at(size_t m, size_t n) const { return data + (m - m0) * stride + (n - n0); }
};

// With one row of x the work is reading W, in few long runs of it.
inline size_t few_columns(size_t m, size_t n) { return m == 1 ? (n + 7) / 8 : 32; }

// The kernels of one instruction set. Every element of y is summed in one order, whatever M is and
// however the work is split, so a row's result does not depend on the batch that it is in.
struct Kernels {
    const char* name;
    // What a row of rounded x takes; a multiple of 32.
    size_t (*bytes_of_row)(const Weights& w);
    // Rounds the rows of x from m on, `rows_at_once` or as many as there are; x is row m.
    void (*round_rows)(const float* x, const Weights& w, const Activations& a, size_t m);
    // Computes x W^T + bias for rows [m0, m1) of x and [n0, n1) of W.
    void (*multiply)(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
                     size_t n0, size_t n1);
    // How the work is cut: m0 is a multiple of rows_of_task; n0 of what columns_of_task gives, or,
    // of the second half of a gated product, that from its beginning.
    size_t rows_at_once = 1, rows_of_task = 64;
    size_t (*columns_of_task)(size_t m, size_t n) = few_columns;
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx2Vnni;
extern const Kernels kAvx512;
extern const Kernels kAvx512Vnni;
extern const Kernels kAmx;
#endif

}  // namespace enginewright
