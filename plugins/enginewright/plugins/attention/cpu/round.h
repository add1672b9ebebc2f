// What tiles of bfloat16 multiply in attention.
//
// A number of queries or weights, float32, is rounded to the nearest bfloat16 times kUnit, ties to
// even. One of the cache, float16, has its ties away from zero, and is rounded by the way of bits:
// those of float16 with three less, which as a bfloat16 are a number 2^-112 as large. Below 2^-14 it
// counts as 0. What is no number, or infinite, counts as one above 2^16: new keys and values that
// are none come with queries that are none, which is seen.
//
// | room      | shape          | meaning                                                            |
// |-----------|----------------|--------------------------------------------------------------------|
// | left rows | [rows, n, 64]  | 32 numbers, and as many places unused, where float32 had been      |
// | right     | [2, 16, 16, 2] | a step of 32 columns: two tiles of 16 pairs of rows                |
#pragma once

#include "amx_tiles.h"
#include "avx512.h"
#include "fetch.h"

namespace enginewright::attention {
namespace {

// Numbers of a row in a step, and columns that are multiplied at a time.
constexpr size_t kStep = 32;
constexpr size_t kRightBytes = 2 * kTileBytes;
// Puts products in the middle of what float32 holds.
constexpr float kUnit = 0x1p64f;
constexpr float kOfProducts = 0x1p48f;  // 2^112 / kUnit

// 32 numbers of a left row.
inline void round_left(__m512 first, __m512 second, float* to) {
    const __m512 unit = _mm512_set1_ps(kUnit);
    const auto rounded =
        _mm512_cvtne2ps_pbh(_mm512_mul_ps(second, unit), _mm512_mul_ps(first, unit));
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(rounded));
}

// Rows of the cache, `stride` numbers apart.
struct Cached {
    const Half* at;
    size_t stride;
};

// 32 rows of 32 columns; [first, last) are the rows and [0, columns) the columns that are there.
// On the way as many of `later` are fetched.
template <bool Whole>
void round_some(Cached rows, size_t first, size_t last, size_t columns, Cached later, uint8_t* to) {
    const __m512i low = _mm512_setr_epi32(
        0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006, 0x270007, 0x280008,
        0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(kSide));
    const auto row = [&](size_t at) {
        const Half* from = rows.at + at * rows.stride;
        __m512i half;
        if constexpr (Whole) {
            half = _mm512_loadu_si512(from);
        } else {
            const __mmask32 there = columns < kStep ? (1u << columns) - 1 : ~0u;
            half = _mm512_maskz_loadu_epi16(at >= first && at < last ? there : 0, from);
        }
        // To the second cache: the first has too few places for lines that are on their way.
        fetch_later<kLine>(later.at + at * later.stride);
        const __m512i rounded = _mm512_srai_epi16(_mm512_add_epi16(half, _mm512_set1_epi16(4)), 3);
        return _mm512_and_si512(rounded, _mm512_set1_epi16(static_cast<int16_t>(0x8fff)));
    };
    for (size_t pair = 0; pair < kSide; ++pair) {
        const __m512i even = row(2 * pair), odd = row(2 * pair + 1);
        _mm512_store_si512(to + pair * 64, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_store_si512(to + kTileBytes + pair * 64, _mm512_permutex2var_epi16(even, high, odd));
    }
}

inline void round_right(Cached rows, size_t first, size_t last, size_t columns, Cached later,
                        uint8_t* to) {
    if (first == 0 && last == kStep && columns == kStep)
        round_some<true>(rows, first, last, columns, later, to);
    else
        round_some<false>(rows, first, last, columns, later, to);
}

// Left rows, of which there may be 16 more, `stride` floats apart.
struct Left {
    const float* at;
    size_t stride;
    bool two;
};

// Sums 0 and 2 += a step of left rows by its right, 32 columns; sums 1 and 3 += the next 16 rows
// by these, or these rows by more columns.
[[gnu::always_inline]] inline void multiply_step(Left left, const uint8_t* right,
                                                 const uint8_t* more) {
    const size_t bytes = left.stride * sizeof(float);
    written_before();
    _tile_stream_loadd(6, right, 64);
    _tile_stream_loadd(7, right + kTileBytes, 64);
    _tile_loadd(4, left.at, bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    if (left.two) {
        _tile_loadd(5, left.at + kSide * left.stride, bytes);
        _tile_dpbf16ps(1, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    } else if (more) {
        _tile_loadd(6, more, 64);
        _tile_loadd(7, more + kTileBytes, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
    }
}

}  // namespace
}  // namespace enginewright::attention
