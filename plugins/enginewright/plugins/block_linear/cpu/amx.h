// How the kernels for AMX turn codes and rows of x into tiles of bfloat16.
//
// W is dequantized, made larger by 3/1024 and cut to bfloat16, which makes it as much smaller in
// the mean, but for 1e-4: the root mean square of relative errors is 6% above that of rounding to
// the nearest, the largest 0.5% instead of 0.4%. Rounding would take one more operation for a table
// of 4-bit codes and another for 8-bit ones. x is rounded to the nearest. Sums are in float32. That
// is for 4-bit codes, whose own rounding is larger by far, and for those of 8 bits beside them.
//
// A tile has 16 rows of 64 bytes: of W 16 rows by 32 elements along K (a step), of x 16 pairs of
// elements by up to 16 rows. Both hold the elements of a step in one order, that of element_at(),
// so that codes are brought there by shifts alone.
//
// | room   | shape                        | type     | meaning                                    |
// |--------|------------------------------|----------|--------------------------------------------|
// | panel  | [steps, 32, 32]              | bfloat16 | 32 rows of W                               |
// | x      | [M / 16, steps, 16, M', 2]   | bfloat16 | M' = min(M, 16) rows, the last may be less |
// | totals | [pairs of tiles, 4, 16, 16]  | float32  | of 32 rows of x: two by two tiles of W x^T |
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "amx_tiles.h"
#include "fetch.h"
#include "tensors.h"
#include "unroll.h"

#define ENGINEWRIGHT_INLINE [[gnu::always_inline]] inline

namespace enginewright {
namespace {

constexpr size_t kDepth = 32;
constexpr float kLarger = 1 + 3.0f / 1024;

// Which of the elements of a step is at a place.
constexpr size_t element_at(size_t place, size_t bits) {
    return bits == 8 ? place / 2 % 8 * 4 + place % 2 * 2 + place / 16 : place % 8 * 4 + place / 8;
}

template <size_t Bits>
constexpr size_t kStepBytes = kDepth * Bits / 8;
constexpr size_t kPanelRows = 2 * kSide;
constexpr size_t kPanelStep = kPanelRows * kDepth * 2;
// Steps that panels have room for in the nearer caches; a multiple of those of the largest block.
constexpr size_t kRoomSteps = 144;

__mmask16 first(size_t count) { return static_cast<__mmask16>((1u << std::min(count, kSide)) - 1); }

__m512 load_values(const void* values, size_t index, __mmask16 mask, bool half) {
    if (half)
        return _mm512_cvtph_ps(
            _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + index));
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(values) + index);
}

ENGINEWRIGHT_INLINE void fetch_values(const void* values, size_t index, bool half) {
    fetch<kLine>(static_cast<const uint8_t*>(values) + index * (half ? 2 : 4));
}

__m512 load_zeros(const Weights& w, const uint8_t* row, size_t b, __mmask16 mask) {
    if (w.bits == 8)
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, row + b)));
    const size_t bytes = (static_cast<size_t>(__builtin_popcount(mask)) + 1) / 2;
    const __m512i two = _mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(first(bytes), row + b / 2));
    const __m512i apart = _mm512_or_si512(two, _mm512_slli_epi64(two, 28));
    return _mm512_cvtepi32_ps(_mm512_and_si512(apart, _mm512_set1_epi32(15)));
}

// Of the blocks of some rows of W, one after the other: scales, and offset - scale * zero, all made
// larger. Codes of 8 bits and their zeros stand as 1 + code / 256, and scales are 256 times as
// large.
struct Values {
    std::vector<float> scales, constants;

    void read(const Weights& w, size_t n, size_t rows) {
        const size_t count = rows * w.blocks;
        if (scales.size() < count + kSide) {
            constants.resize(count + kSide);
            scales.resize(count + kSide);  // the last, by which the room is known to be there
        }
        const float one = w.bits == 8 ? 1 : 0, part = w.bits == 8 ? 1 / 256.0f : 1;
        const __m512 factor = _mm512_set1_ps(kLarger / part), larger = _mm512_set1_ps(kLarger);
        const __m512 zero =
            _mm512_set1_ps(w.zero_points ? 0 : one + part * static_cast<float>(w.zero));
        for (size_t i = 0; i < count; i += kSide) {
            const size_t at = n * w.blocks + i;
            const __mmask16 mask = first(count - i);
            // Two panels ahead: one is read at once, its codes in pieces.
            fetch_values(w.scales, at + 2 * count, w.half);
            if (w.offsets) fetch_values(w.offsets, at + 2 * count, w.half);
            const __m512 scale = _mm512_mul_ps(load_values(w.scales, at, mask, w.half), factor);
            const __m512 offset =
                w.offsets ? _mm512_mul_ps(load_values(w.offsets, at, mask, w.half), larger)
                          : _mm512_setzero_ps();
            _mm512_storeu_ps(scales.data() + i, scale);
            _mm512_storeu_ps(constants.data() + i, _mm512_fnmadd_ps(scale, zero, offset));
        }
        for (size_t r = 0; w.zero_points && r < rows; ++r)
            for (size_t b = 0; b < w.blocks; b += kSide) {
                const __mmask16 mask = first(w.blocks - b);
                const uint8_t* row = w.zero_points + (n + r) * w.zero_row_bytes;
                float* constant = constants.data() + r * w.blocks + b;
                const __m512 scale = _mm512_loadu_ps(scales.data() + r * w.blocks + b);
                const __m512 offset = _mm512_maskz_loadu_ps(mask, constant);
                const __m512 zeros = _mm512_fmadd_ps(load_zeros(w, row, b, mask),
                                                     _mm512_set1_ps(part), _mm512_set1_ps(one));
                _mm512_mask_storeu_ps(constant, mask, _mm512_fnmadd_ps(scale, zeros, offset));
            }
    }
};

// Those of blocks of a row, from one on.
struct RowValues {
    const float *scales, *constants;

    __m512 of(size_t b, __m512 codes) const {
        return _mm512_fmadd_ps(codes, _mm512_set1_ps(scales[b]), _mm512_set1_ps(constants[b]));
    }
};

constexpr int kAndThenOr = 0xea;  // (a & b) | c

// What the 16 codes of 4 bits stand for in a block; the upper halves of the lanes are bfloat16.
ENGINEWRIGHT_INLINE __m512i table_of(const RowValues& values, size_t b) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_castps_si512(values.of(b, codes));
}

// The bytes of a table where 32 codes of 4 bits have theirs: code c has 4 c + 2 and 4 c + 3. The
// instruction that looks up words instead of bytes takes twice as long.
ENGINEWRIGHT_INLINE __m512i places_of(const uint8_t* codes) {
    // A byte takes 8 bits from two before those of its code; of these, bits 2 to 5 are the code.
    const __m512i from = _mm512_setr_epi64(
        0x2e2e1e1e0e0e3e3e, 0x2e2e1e1e0e0e3e3e, 0x3232222212120202, 0x3232222212120202,
        0x3636262616160606, 0x3636262616160606, 0x3a3a2a2a1a1a0a0a, 0x3a3a2a2a1a1a0a0a);
    const __m512i stored =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m512i code = _mm512_set1_epi8(15 << 2), byte = _mm512_set1_epi16(3 << 8 | 2);
    return _mm512_ternarylogic_epi32(_mm512_multishift_epi64_epi8(from, stored), code, byte,
                                     kAndThenOr);
}

// A step of 4-bit codes of one block, or of two blocks of 16.
template <size_t Block>
ENGINEWRIGHT_INLINE __m512i look_up(const uint8_t* codes, const RowValues& values, size_t b,
                                    __m512i table) {
    const __m512i places = places_of(codes);
    const __m512i found = _mm512_permutexvar_epi8(places, table);
    if constexpr (Block > 16) return found;
    constexpr __mmask64 kLater = 0xff00ff00ff00ff00;
    return _mm512_mask_permutexvar_epi8(found, kLater, places, table_of(values, b + 1));
}

// The same of 8-bit codes, each put into bits 15 to 22 of the number 1. Of every four, the first
// two become lower halves of lanes, the others upper ones.
template <size_t Block>
ENGINEWRIGHT_INLINE __m512i dequantize_bytes(const uint8_t* codes, const RowValues& values,
                                             size_t b) {
    const __m512i stored =
        _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    const auto found_of = [&](__m512i moved) {
        const __m512i code = _mm512_set1_epi32(255 << 15), one = _mm512_set1_epi32(127 << 23);
        const __m512 floats =
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32(moved, code, one, kAndThenOr));
        __m512 found = values.of(b, floats);
        constexpr __mmask16 kLater = 0xf0f0;
        if constexpr (Block == 16)
            found = _mm512_mask_mov_ps(found, kLater, values.of(b + 1, floats));
        return _mm512_castps_si512(found);
    };
    const auto by = [](int first, int second) {
        return _mm512_setr_epi32(first, first, first, first, first, first, first, first, second,
                                 second, second, second, second, second, second, second);
    };
    const __m512i low = found_of(_mm512_sllv_epi32(stored, by(15, 7)));
    const __m512i high = found_of(_mm512_srlv_epi32(stored, by(1, 9)));
    constexpr __mmask32 kUpper = 0xaaaaaaaa;
    return _mm512_mask_blend_epi16(kUpper, _mm512_srli_epi32(low, 16), high);
}

// Steps of a row of W; in a panel they lie kPanelStep bytes apart.
template <size_t Bits, size_t Block, size_t Steps>
ENGINEWRIGHT_INLINE void dequantize_steps(const uint8_t* codes, const RowValues& values,
                                          uint8_t* to) {
    [[maybe_unused]] __m512i table;
    unroll<Steps>([&](auto s) {
        constexpr size_t b = s * kDepth / Block;
        const uint8_t* from = codes + s * kStepBytes<Bits>;
        __m512i found;
        if constexpr (Bits == 8) {
            found = dequantize_bytes<Block>(from, values, b);
        } else {
            if constexpr (s * kDepth % Block == 0) table = table_of(values, b);
            found = look_up<Block>(from, values, b, table);
        }
        _mm512_store_si512(to + s * kPanelStep, found);
    });
}

// Steps of rows of W, from row n and a first step on; the values are those of row n on. The line
// that follows in a row is fetched to the nearest cache, the next panel to the second, one line
// after the other: the processor does not, of rows that are read side by side.
template <size_t Bits, size_t Block, size_t Steps>
void dequantize_rows(const Weights& w, size_t n, size_t first, const Values& values, size_t rows,
                     uint8_t* to) {
    constexpr size_t kBytes = Steps * kStepBytes<Bits>;
    const size_t row_bytes = w.row_bytes, blocks = w.blocks, block = first * kDepth / Block;
    const uint8_t* codes = w.codes + n * row_bytes + first * kStepBytes<Bits>;
    const uint8_t* next =
        w.codes + (n + kPanelRows) * row_bytes + first * kStepBytes<Bits> * kPanelRows;
    RowValues row{values.scales.data() + block, values.constants.data() + block};
    for (size_t r = 0; r < rows; ++r) {
        fetch_later<kBytes>(next + r * kBytes);
        fetch<kBytes>(codes + kBytes + kLine - 1);
        dequantize_steps<Bits, Block, Steps>(codes, row, to);
        codes += row_bytes, to += kDepth * 2;
        row.scales += blocks, row.constants += blocks;
    }
}

// 16 by 16 lanes: lane j of register i becomes i of j.
void transpose(__m512i* r) {
    __m512i t[kSide];
    for (size_t i = 0; i < kSide; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (size_t i = 0; i < kSide; i += 4)
        for (size_t h = 0; h < 2; ++h) {
            r[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + 2 + h]);
            r[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + 2 + h]);
        }
    for (size_t i = 0; i < 4; ++i) {  // lanes i, 4 + i, 8 + i, 12 + i of every four registers
        const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    std::copy_n(t, kSide, r);
}

// Rows of x in a tile.
size_t width_of(const Activations& a) { return std::min(a.rows, kSide); }

// Where a tile of x is; m a multiple of 16.
uint8_t* x_tile(const Weights& w, const Activations& a, size_t m, size_t step) {
    return a.codes + m * w.k * 2 + step * kSide * width_of(a) * 4;
}

__m512i join(__m512 low, __m512 high) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// The rows of x from m on, at most 16 of them, as tiles.
void pack(const float* x, const Weights& w, const Activations& a, size_t m) {
    alignas(64) uint16_t order[kDepth];
    for (size_t p = 0; p < kDepth; ++p) order[p] = static_cast<uint16_t>(element_at(p, w.bits));
    const __m512i places = _mm512_load_si512(order);
    const size_t width = width_of(a), count = std::min(kSide, a.rows - m);
    __m512i rows[kSide] = {};
    for (size_t step = 0; step < w.k / kDepth; ++step) {
        for (size_t r = 0; r < count; ++r) {
            const float* from = x + r * w.k + step * kDepth;
            const __m512i both = join(_mm512_loadu_ps(from), _mm512_loadu_ps(from + kSide));
            rows[r] = _mm512_permutexvar_epi16(places, both);
        }
        uint8_t* to = x_tile(w, a, m, step);
        if (width == 1) {
            _mm512_storeu_si512(to, rows[0]);
            continue;
        }
        transpose(rows);
        for (size_t pair = 0; pair < kSide; ++pair)
            _mm512_mask_storeu_epi32(to + pair * width * 4, first(width), rows[pair]);
        if (count < kSide) std::fill_n(rows, kSide, _mm512_setzero_si512());
    }
}

// 16 rows of W by some of x, to y with the bias.
void finish_tile(const Weights& w, const float* tile, const Result& y, size_t m, size_t rows,
                 size_t n, size_t columns) {
    const __mmask16 mask = first(columns);
    const __m512 bias = w.bias ? _mm512_maskz_loadu_ps(mask, w.bias + n) : _mm512_setzero_ps();
    const auto store = [&](size_t r, __m512 values) {
        _mm512_mask_storeu_ps(y.at(m + r, n), mask, _mm512_add_ps(values, bias));
    };
    if (rows <= 4) {
        const __m512i lines = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176,
                                                192, 208, 224, 240);
        for (size_t r = 0; r < rows; ++r) store(r, _mm512_i32gather_ps(lines, tile + r, 4));
        return;
    }
    __m512i lines[kSide];
    for (size_t i = 0; i < kSide; ++i) lines[i] = _mm512_load_si512(tile + i * kSide);
    transpose(lines);
    for (size_t r = 0; r < std::min(rows, kSide); ++r) store(r, _mm512_castsi512_ps(lines[r]));
}

}  // namespace
}  // namespace enginewright
