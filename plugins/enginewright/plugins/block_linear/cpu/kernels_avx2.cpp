// The kernels for x86-64 with AVX2, FMA and F16C.
//
// A step is 32 bytes of a row of W. Of 4-bit codes these are 64: products of pairs of bytes are
// summed to 16 lanes of 16 bits, and these times the multipliers of x to 8 lanes of 32 bits. Of
// 8-bit codes they are 32, whose products with words of x are summed to 8 lanes of 32 bits at once.
// These times the scales of W are summed in float32. No sum of integers can overflow: four products
// of 4 by 8 bits are below 2^15, two of those times multipliers, or four of 8 by 16 bits, below
// 2^31.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "tensors.h"

namespace enginewright {
namespace {

constexpr size_t kLanes = 8;
constexpr size_t kRegister = 32;
constexpr size_t kWords = kRegister / 2;
constexpr size_t kColumns = 2;
// Bytes ahead: the processor's own prefetching stops at the end of a page.
constexpr size_t kPrefetch = 4096;

template <size_t Bits>
constexpr size_t kStep = Bits == 4 ? 64 : 32;

// Calls f with 0 .. N - 1 as constants, so that what it indexes stays in registers.
template <size_t N, class F>
[[gnu::always_inline]] inline void unroll(const F& f) {
    [&]<size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<size_t, I>{}), ...);
    }(std::make_index_sequence<N>{});
}

__m256i load(const void* bytes) { return _mm256_loadu_si256(static_cast<const __m256i*>(bytes)); }

void store(void* bytes, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(bytes), value); }

// Fewer bytes than a register holds, where memory may end; zeros after them.
__m256i load_some(const void* bytes, size_t count) {
    uint8_t padded[kRegister] = {};
    std::memcpy(padded, bytes, count);
    return load(padded);
}

// Codes of one step: of 4-bit ones the even elements and the odd ones apart, as bytes; of 8-bit
// ones elements 0-7, 16-23 and elements 8-15, 24-31, as words.
struct Codes {
    __m256i first, second;
};

template <size_t Bits>
Codes split(__m256i stored) {
    if constexpr (Bits == 4) {
        const __m256i low = _mm256_set1_epi8(15);
        return {_mm256_and_si256(stored, low), _mm256_and_si256(_mm256_srli_epi16(stored, 4), low)};
    }
    const __m256i zero = _mm256_setzero_si256();
    return {_mm256_unpacklo_epi8(stored, zero), _mm256_unpackhi_epi8(stored, zero)};
}

// A row of W as it is stored.
template <size_t Bits>
struct Stored {
    const uint8_t* row;
    Codes step(size_t s) const {
        _mm_prefetch(row + s * kRegister + kPrefetch, _MM_HINT_T0);
        return split<Bits>(load(row + s * kRegister));
    }
    Codes part(size_t s, size_t k) const {
        return split<Bits>(load_some(row + s * kRegister, k * Bits / 8 - s * kRegister));
    }
};

// A row of W whose codes were split before, for several tiles of x.
struct Widened {
    const uint8_t* row;
    Codes step(size_t s) const {
        return {load(row + 2 * s * kRegister), load(row + (2 * s + 1) * kRegister)};
    }
    Codes part(size_t s, size_t) const { return step(s); }
};

// A row of rounded x.
template <size_t Bits>
struct Rounded {
    const int8_t* bytes;
    const int16_t* words;

    // The products of a step with a row of W, summed to 8 lanes of 32 bits.
    __m256i dot(const Codes& w, size_t s) const {
        if constexpr (Bits == 4) {
            const int8_t* x = bytes + s * kStep<4>;
            const __m256i even = _mm256_maddubs_epi16(w.first, load(x));
            const __m256i odd = _mm256_maddubs_epi16(w.second, load(x + kRegister));
            return _mm256_madd_epi16(_mm256_add_epi16(even, odd), load(words + s * kWords));
        }
        const int16_t* x = words + s * kStep<8>;
        return _mm256_add_epi32(_mm256_madd_epi16(w.first, load(x)),
                                _mm256_madd_epi16(w.second, load(x + kWords)));
    }
};

// The scales of a step's lanes, from those of the blocks of a row.
template <size_t Bits, size_t Block>
__m256 step_scales(const float* scales, size_t s, unsigned shift) {
    constexpr size_t kBlocks = kStep<Bits> / Block;  // of a step; 0: it is a part of one
    if constexpr (kBlocks <= 1) {
        return _mm256_broadcast_ss(scales + (s >> shift));
    } else if constexpr (kBlocks == 2) {
        const __m256i halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
        double both;
        std::memcpy(&both, scales + 2 * s, sizeof both);
        return _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(both)), halves);
    } else {
        const __m256i quarters = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        const __m128 four = _mm_loadu_ps(scales + 4 * s);
        return _mm256_permutevar_ps(_mm256_broadcast_ps(&four), quarters);
    }
}

// Lanes 0 to 7: ((0 + 2) + (1 + 3)) + ((4 + 6) + (5 + 7)).
float sum_lanes(__m256 v) {
    v = _mm256_add_ps(v, _mm256_permute_ps(v, 0x4e));
    v = _mm256_add_ps(v, _mm256_movehdup_ps(v));
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}

// 8 values of T from an index on; beyond the end of the tensor 0.
__m256 load_values(const void* values, size_t index, size_t size, bool half) {
    const bool whole = index + kLanes <= size;
    const auto* bytes = static_cast<const uint8_t*>(values);
    if (!half) {
        bytes += index * sizeof(float);
        const __m256i raw = whole ? load(bytes) : load_some(bytes, (size - index) * sizeof(float));
        return _mm256_castsi256_ps(raw);
    }
    bytes += index * sizeof(uint16_t);
    const __m128i raw =
        whole ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))
              : _mm256_castsi256_si128(load_some(bytes, (size - index) * sizeof(uint16_t)));
    return _mm256_cvtph_ps(raw);
}

// The zero points of 8 blocks from block b on.
template <size_t Bits>
__m256 load_zeros(const uint8_t* row, size_t b, size_t row_bytes) {
    const size_t first = b * Bits / 8;
    uint8_t bytes[kLanes] = {};
    if (first + kLanes * Bits / 8 <= row_bytes)
        std::memcpy(bytes, row + first, kLanes * Bits / 8);
    else
        std::memcpy(bytes, row + first, row_bytes - first);
    if constexpr (Bits == 4) {
        uint32_t packed;
        std::memcpy(&packed, bytes, sizeof packed);
        const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        const __m256i zeros =
            _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(packed)), shifts);
        return _mm256_cvtepi32_ps(_mm256_and_si256(zeros, _mm256_set1_epi32(15)));
    }
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed));
}

// For 8 blocks of a row from b on, the scales and what multiplies the sums of x over them:
// offset - scale * zero.
struct BlockValues {
    __m256 scales, constants;
};

template <size_t Bits>
BlockValues block_values(const Weights& w, size_t n, size_t b) {
    const size_t index = n * w.blocks + b, size = w.n * w.blocks;
    __m256 zeros = _mm256_set1_ps(static_cast<float>(w.zero));
    if (w.zero_points)
        zeros = load_zeros<Bits>(w.zero_points + n * w.zero_row_bytes, b, w.zero_row_bytes);
    const __m256 scales = load_values(w.scales, index, size, w.half);
    __m256 offsets = _mm256_setzero_ps();
    if (w.offsets) offsets = load_values(w.offsets, index, size, w.half);
    return {scales, _mm256_fnmadd_ps(scales, zeros, offsets)};
}

// y [m : m + Rows, n : n + Columns] by the rows of W whose codes are given. Each element is the
// sum, in this order, of constants by sums of x, of the products of each step, and of the lanes.
template <size_t Bits, size_t Block, size_t Rows, size_t Columns, class Source>
void tile(const Weights& w, const Activations& a, const Source* rows, float* const* scales_of,
          float* y, size_t m, size_t n) {
    const size_t steps = w.k / kStep<Bits>;
    const auto shift =
        static_cast<unsigned>(__builtin_ctzll(std::max(w.block, kStep<Bits>) / kStep<Bits>));
    Rounded<Bits> x[Rows];
    Source source[Columns];
    const float* scales[Columns];
    __m256 total[Columns][Rows];
    unroll<Rows>(
        [&](auto r) { x[r] = {a.bytes + (m + r) * a.padded, a.words + (m + r) * a.padded}; });
    unroll<Columns>([&](auto c) {
        source[c] = rows[c];
        scales[c] = scales_of[c];
        unroll<Rows>([&](auto r) { total[c][r] = _mm256_setzero_ps(); });
        for (size_t b = 0; b < w.blocks; b += kLanes) {
            const BlockValues values = block_values<Bits>(w, n + c, b);
            _mm256_storeu_ps(scales_of[c] + b, values.scales);
            unroll<Rows>([&](auto r) {
                const float* sums = a.sums + (m + r) * a.padded_blocks + b;
                total[c][r] = _mm256_fmadd_ps(values.constants, _mm256_loadu_ps(sums), total[c][r]);
            });
        }
    });
    const auto add = [&](auto c, const Codes& codes, size_t s) __attribute__((always_inline)) {
        const __m256 scale = step_scales<Bits, Block>(scales[c], s, shift);
        unroll<Rows>([&](auto r) __attribute__((always_inline)) {
            const __m256 product = _mm256_cvtepi32_ps(x[r].dot(codes, s));
            total[c][r] = _mm256_fmadd_ps(product, scale, total[c][r]);
        });
    };
    for (size_t s = 0; s < steps; ++s)
        unroll<Columns>([&](auto c)
                            __attribute__((always_inline)) { add(c, source[c].step(s), s); });
    if (steps * kStep<Bits> < w.k)
        unroll<Columns>([&](auto c) { add(c, source[c].part(steps, w.k), steps); });
    unroll<Columns>([&](auto c) {
        unroll<Rows>([&](auto r) {
            y[(m + r) * w.n + n + c] =
                std::fma(a.scales[m + r], sum_lanes(total[c][r]), w.bias ? w.bias[n + c] : 0.0f);
        });
    });
}

// Room that a thread keeps for some rows of W: their scales as float32, and their codes split.
struct Scratch {
    std::vector<float> scales;
    std::vector<uint8_t> codes;
    float* scales_of[kColumns];
    uint8_t* codes_of[kColumns];

    void fit(const Activations& a) {
        const size_t bytes = 2 * a.padded;
        scales.resize(kColumns * a.padded_blocks);
        codes.resize(kColumns * bytes);
        for (size_t c = 0; c < kColumns; ++c) {
            scales_of[c] = scales.data() + c * a.padded_blocks;
            codes_of[c] = codes.data() + c * bytes;
        }
    }
};

// One row of x against W as it is stored, row by row: each of its tensors is read as one stream,
// which the processor fetches ahead; it loses sight of several that lie close together.
template <size_t Bits, size_t Block>
void multiply_row(const Weights& w, const Activations& a, Scratch& scratch, float* y, size_t m,
                  size_t n0, size_t n1) {
    for (size_t n = n0; n < n1; ++n) {
        const Stored<Bits> row{w.codes + n * w.row_bytes};
        tile<Bits, Block, 1, 1>(w, a, &row, scratch.scales_of, y, m, n);
    }
}

// Several rows of x against one or two rows of W, whose codes are split once.
template <size_t Bits, size_t Block, size_t Columns>
void multiply_rows(const Weights& w, const Activations& a, Scratch& scratch, float* y, size_t m0,
                   size_t m1, size_t n) {
    Widened rows[Columns];
    const size_t steps = w.k / kStep<Bits>;
    for (size_t c = 0; c < Columns; ++c) {
        const Stored<Bits> stored{w.codes + (n + c) * w.row_bytes};
        uint8_t* out = scratch.codes_of[c];
        const auto keep = [out](size_t s, const Codes& codes) {
            store(out + 2 * s * kRegister, codes.first);
            store(out + (2 * s + 1) * kRegister, codes.second);
        };
        for (size_t s = 0; s < steps; ++s) keep(s, stored.step(s));
        if (steps * kStep<Bits> < w.k) keep(steps, stored.part(steps, w.k));
        rows[c] = {out};
    }
    size_t m = m0;
    for (; m + 4 <= m1; m += 4)
        tile<Bits, Block, 4, Columns>(w, a, rows, scratch.scales_of, y, m, n);
    if (m + 2 <= m1) {
        tile<Bits, Block, 2, Columns>(w, a, rows, scratch.scales_of, y, m, n);
        m += 2;
    }
    if (m < m1) tile<Bits, Block, 1, Columns>(w, a, rows, scratch.scales_of, y, m, n);
}

template <size_t Bits, size_t Block>
void multiply_as(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1, size_t n0,
                 size_t n1) {
    thread_local Scratch scratch;
    scratch.fit(a);
    if (m1 - m0 == 1) return multiply_row<Bits, Block>(w, a, scratch, y, m0, n0, n1);
    size_t n = n0;
    for (; n + 2 <= n1; n += 2) multiply_rows<Bits, Block, 2>(w, a, scratch, y, m0, m1, n);
    if (n < n1) multiply_rows<Bits, Block, 1>(w, a, scratch, y, m0, m1, n);
}

template <size_t Bits>
void multiply_bits(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1,
                   size_t n0, size_t n1) {
    const auto as = w.block == 16   ? multiply_as<Bits, 16>
                    : w.block == 32 ? multiply_as<Bits, 32>
                                    : multiply_as<Bits, 64>;  // and above
    as(w, a, y, m0, m1, n0, n1);
}

void multiply(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1, size_t n0,
              size_t n1) {
    (w.bits == 4 ? multiply_bits<4> : multiply_bits<8>)(w, a, y, m0, m1, n0, n1);
}

// NaN if any value is one.
float largest_magnitude(const float* x, size_t count) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 largest = _mm256_setzero_ps(), unordered = _mm256_setzero_ps();
    for (size_t i = 0; i < count; i += kLanes) {
        const __m256 values = _mm256_loadu_ps(x + i);
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
        largest = _mm256_max_ps(largest, _mm256_and_ps(magnitude, values));
    }
    if (_mm256_movemask_ps(unordered)) return std::numeric_limits<float>::quiet_NaN();
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// 16 values over the distance between two codes as words, rounded to the nearest, ties to even.
__m256i round_words(const float* x, float inverse) {
    const __m256 factor = _mm256_set1_ps(inverse);
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + kLanes), factor));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
}

int sum_words(__m256i words) {
    const __m256i pairs = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
}

__m128i* at(void* address) { return static_cast<__m128i*>(address); }

// Against 4-bit codes: of four groups the even elements and then the odd ones, as dot() meets them.
void store_bytes(int8_t* bytes, int16_t* words, size_t g, __m256i group, int multiplier) {
    const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m128i codes =
        _mm_packs_epi16(_mm256_castsi256_si128(group), _mm256_extracti128_si256(group, 1));
    const __m128i halves = _mm_shuffle_epi8(codes, apart);
    int8_t* even = bytes + g / 4 * kStep<4> + g % 4 * (kGroup / 2);
    _mm_storel_epi64(at(even), halves);
    _mm_storel_epi64(at(even + kRegister), _mm_srli_si128(halves, 8));
    _mm_storel_epi64(at(words + g * kGroup / 4), _mm_set1_epi16(static_cast<int16_t>(multiplier)));
}

void round_to_bytes(const float* x, const Weights& w, const Activations& a, size_t m) {
    float* sums = a.sums + m * a.padded_blocks;
    const auto groups_of_block = static_cast<unsigned>(__builtin_ctzll(w.block / kGroup));
    const float scale = largest_magnitude(x, w.k) / (kLargestByte * kLargestWord);
    const float per_code = scale > kSmallestScale ? 1 / (scale * kLargestByte) : 0;
    a.scales[m] = scale;
    for (size_t g = 0; g < a.padded / kGroup; ++g) {
        __m256i group = _mm256_setzero_si256();
        int multiplier = 0;
        if (g < w.k / kGroup && per_code > 0) {
            const float* values = x + g * kGroup;
            const float largest = std::ceil(largest_magnitude(values, kGroup) * per_code);
            multiplier = std::min(kLargestWord, static_cast<int>(largest));
            if (multiplier > 0)
                group = round_words(values, 1 / (scale * static_cast<float>(multiplier)));
            sums[g >> groups_of_block] += static_cast<float>(multiplier * sum_words(group));
        }
        store_bytes(a.bytes + m * a.padded, a.words + m * a.padded, g, group, multiplier);
    }
}

// Against 8-bit codes: of two groups the first halves and then the second ones.
void round_to_words(const float* x, const Weights& w, const Activations& a, size_t m) {
    float* sums = a.sums + m * a.padded_blocks;
    const auto groups_of_block = static_cast<unsigned>(__builtin_ctzll(w.block / kGroup));
    const float scale = largest_magnitude(x, w.k) / kLargestWord;
    const float per_code = scale > kSmallestScale ? 1 / scale : 0;
    a.scales[m] = scale;
    for (size_t g = 0; g < a.padded / kGroup; ++g) {
        __m256i group = _mm256_setzero_si256();
        if (g < w.k / kGroup && per_code > 0) {
            group = round_words(x + g * kGroup, per_code);
            sums[g >> groups_of_block] += static_cast<float>(sum_words(group));
        }
        int16_t* words = a.words + m * a.padded + g / 2 * kStep<8> + g % 2 * kLanes;
        _mm_storeu_si128(at(words), _mm256_castsi256_si128(group));
        _mm_storeu_si128(at(words + kWords), _mm256_extracti128_si256(group, 1));
    }
}

void round_row(const float* x, const Weights& w, const Activations& a, size_t m) {
    std::fill_n(a.sums + m * a.padded_blocks, a.padded_blocks, 0.0f);
    (w.bits == 4 ? round_to_bytes : round_to_words)(x, w, a, m);
}

}  // namespace

const Kernels kAvx2 = {"avx2", round_row, multiply};

}  // namespace enginewright
