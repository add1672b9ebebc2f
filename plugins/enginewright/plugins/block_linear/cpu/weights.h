// How the kernels for x86-64 read a row of W: as pieces that rows of x meet.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace enginewright {
namespace {

// Registers of 8 lanes, that hold one row of W.
struct OneRow {
    using Int = __m256i;
    using Float = __m256;
    static constexpr size_t kRows = 1;

    static Float load(const float* lanes) { return _mm256_load_ps(lanes); }
    static void store(float* lanes, Float value) { _mm256_store_ps(lanes, value); }
    // Codes of x, which every row of W meets.
    static Int load_codes(const uint8_t* x) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(x));
    }
    static Float load_sums(const uint8_t* x) {
        return _mm256_load_ps(reinterpret_cast<const float*>(x));
    }
    // Products of pairs: of bytes as words, of words as 32 bits.
    template <size_t Bits>
    static Int multiply(Int w, Int x) {
        return Bits == 4 ? _mm256_maddubs_epi16(w, x) : _mm256_madd_epi16(w, x);
    }
    template <size_t Bits>
    static Int add(Int a, Int b) {
        return Bits == 4 ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b);
    }
    static Int zero() { return _mm256_setzero_si256(); }
#if defined(__AVX512VNNI__)
    template <size_t Bits>
    static Int dot(Int sum, Int w, Int x) {
        return Bits == 4 ? _mm256_dpbusd_epi32(sum, w, x) : _mm256_dpwssd_epi32(sum, w, x);
    }
#elif defined(__AVXVNNI__)
    template <size_t Bits>
    static Int dot(Int sum, Int w, Int x) {
        return Bits == 4 ? _mm256_dpbusd_avx_epi32(sum, w, x) : _mm256_dpwssd_avx_epi32(sum, w, x);
    }
#endif
    // The lower words of the first as those, of the second as the upper words.
    static Int join_words(Int low, Int high) {
        return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
    }
    // Only the first, or only the second word of every lane.
    static Int words_of_half(Int words, bool second) {
        return _mm256_and_si256(words, _mm256_set1_epi32(second ? -0x10000 : 0xffff));
    }
    static Int multiply_words(Int a, Int b) { return _mm256_madd_epi16(a, b); }
    static Float to_float(Int lanes) { return _mm256_cvtepi32_ps(lanes); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
};

// Codes of a step, as bytes (4 bits) or words (8 bits): of every 2 (or 4) elements the first and
// the second half of them.
struct Codes {
    __m256i even, odd;
};

template <size_t Bits>
Codes split(__m256i stored) {
    const __m256i low = Bits == 4 ? _mm256_set1_epi8(15) : _mm256_set1_epi16(255);
    return {_mm256_and_si256(stored, low), _mm256_and_si256(_mm256_srli_epi16(stored, Bits), low)};
}

// Turns 4 registers of 4 lanes (each half by itself): lane l of register q becomes q of l.
void turn(__m256i* r) {
    const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
    const __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm256_unpacklo_epi64(a, c), r[1] = _mm256_unpackhi_epi64(a, c);
    r[2] = _mm256_unpacklo_epi64(b, d), r[3] = _mm256_unpackhi_epi64(b, d);
}

// Count values of T from an index on, as float32; the other lanes are undefined.
template <size_t Count>
ENGINEWRIGHT_INLINE __m256 load_values(const void* values, size_t index, bool half) {
    if (half) {
        const auto* from = static_cast<const uint16_t*>(values) + index;
        if constexpr (Count == 8)
            return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        uint64_t bits = 0;
        std::memcpy(&bits, from, Count * sizeof(uint16_t));
        return _mm256_cvtph_ps(_mm_cvtsi64_si128(static_cast<long long>(bits)));
    }
    const auto* from = static_cast<const float*>(values) + index;
    if constexpr (Count == 8) return _mm256_loadu_ps(from);
    float room[4] = {};
    std::memcpy(room, from, Count * sizeof(float));
    return _mm256_castps128_ps256(_mm_loadu_ps(room));
}

template <size_t Bits, size_t Count>
__m256 load_zeros(const uint8_t* row, size_t first) {
    float zeros[kLanes] = {};
    for (size_t i = 0; i < Count; ++i) {
        const size_t b = first + i;
        const int code = Bits == 8 ? row[b] : row[b / 2] >> (b % 2 * 4) & 15;
        zeros[i] = static_cast<float>(code);
    }
    return _mm256_loadu_ps(zeros);
}

// The scales of 8 lanes, and what multiplies the sums of x over them: offset - scale * zero.
template <class Wide>
struct Values {
    typename Wide::Float scales, constants;
};

Values<OneRow> permute(const Values<OneRow>& values, __m256i order) {
    return {_mm256_permutevar8x32_ps(values.scales, order),
            _mm256_permutevar8x32_ps(values.constants, order)};
}

// Those of Count blocks of row n, from b on.
template <size_t Bits, size_t Count>
ENGINEWRIGHT_INLINE Values<OneRow> block_values(const Weights& w, size_t n, size_t b) {
    const size_t index = n * w.blocks + b;
    const __m256 scales = load_values<Count>(w.scales, index, w.half);
    __m256 zeros = _mm256_set1_ps(static_cast<float>(w.zero));
    if (w.zero_points) zeros = load_zeros<Bits, Count>(w.zero_points + n * w.zero_row_bytes, b);
    __m256 offsets = _mm256_setzero_ps();
    if (w.offsets) offsets = load_values<Count>(w.offsets, index, w.half);
    return {scales, _mm256_fnmadd_ps(scales, zeros, offsets)};
}

// A chunk of a row of W, or a step, for as many rows of x as meet it.
template <class Wide, size_t Count, size_t Halves>
struct Piece {
    static constexpr size_t kHalves = Halves;
    typename Wide::Int codes[Count];
    Values<Wide> values[Halves];
};

// A block of 16 is half of a unit of 4-bit codes: then there are values for each half.
template <size_t Bits, size_t Block>
using Chunk = Piece<OneRow, kRegisters, kHalves<Bits, Block>>;
using Step = Piece<OneRow, 2, 1>;

template <size_t Bits, size_t Block>
ENGINEWRIGHT_INLINE void read_values(const Weights& w, size_t n, size_t c,
                                     Chunk<Bits, Block>& chunk) {
    const size_t b = c * kChunk<Bits> / Block;
    if constexpr (chunk.kHalves == 2) {
        const Values<OneRow> low = block_values<Bits, 8>(w, n, b),
                             high = block_values<Bits, 8>(w, n, b + 8);
        unroll<2>([&](auto half) {
            constexpr int h = half;
            const __m256i order = _mm256_setr_epi32(h, 4 + h, h, 4 + h, 2 + h, 6 + h, 2 + h, 6 + h);
            const Values<OneRow> lows = permute(low, order), highs = permute(high, order);
            chunk.values[h] = {_mm256_blend_ps(lows.scales, highs.scales, 0xcc),
                               _mm256_blend_ps(lows.constants, highs.constants, 0xcc)};
        });
    } else {
        constexpr size_t kUnits = Block / kUnit<Bits>;  // of a block, where it is the smallest
        constexpr size_t kBlocks = std::max<size_t>(1, kLanes / kUnits);
        constexpr auto of = [](int unit) { return static_cast<int>(unit * kBlocks / kLanes); };
        const __m256i order =
            _mm256_setr_epi32(of(0), of(2), of(4), of(6), of(1), of(3), of(5), of(7));
        chunk.values[0] = permute(block_values<Bits, kBlocks>(w, n, b), order);
    }
}

template <size_t Bits, size_t Block>
ENGINEWRIGHT_INLINE Chunk<Bits, Block> read_chunk(const Weights& w, size_t n, size_t c) {
    const uint8_t* stored = w.codes + n * w.row_bytes + c * kStepsOfChunk * kRegister;
    Chunk<Bits, Block> chunk;
    __m256i r[kStepsOfChunk];
    unroll<kStepsOfChunk>([&](auto s) {
        r[s] = load(stored + s * kRegister);
        if constexpr (Bits == 4 && !kDots) {  // the words of the two groups of a unit, in turns
            const __m256i turns = _mm256_broadcastsi128_si256(
                _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
            r[s] = _mm256_shuffle_epi8(r[s], turns);
        }
    });
    fetch<kStepsOfChunk * kRegister>(stored + kAheadOfCodes);
    turn(r);
    unroll<kStepsOfChunk>([&](auto s) {
        const Codes two = split<Bits>(r[s]);
        chunk.codes[2 * s] = two.even, chunk.codes[2 * s + 1] = two.odd;
    });
    read_values<Bits, Block>(w, n, c, chunk);
    return chunk;
}

// Step s after the last whole chunk.
template <size_t Bits, size_t Block>
ENGINEWRIGHT_INLINE Step read_step(const Weights& w, size_t n, size_t s) {
    const size_t first = w.k / kChunk<Bits> * kChunk<Bits> + s * kStep<Bits>;
    const uint8_t* stored = w.codes + n * w.row_bytes + first * Bits / 8;
    const size_t left = w.k - first;
    const Codes two =
        split<Bits>(left < kStep<Bits> ? load_some(stored, left * Bits / 8) : load(stored));
    constexpr size_t kBlocks = std::max<size_t>(1, kStep<Bits> / Block);
    const size_t b = first / Block;
    Values<OneRow> values;
    if (left < kStep<Bits>) {  // blocks beyond the row's meet zeros
        float scales[kLanes] = {}, constants[kLanes] = {};
        for (size_t i = 0; b + i < w.blocks; ++i) {
            const Values<OneRow> one = block_values<Bits, 1>(w, n, b + i);
            scales[i] = _mm256_cvtss_f32(one.scales);
            constants[i] = _mm256_cvtss_f32(one.constants);
        }
        values = {_mm256_loadu_ps(scales), _mm256_loadu_ps(constants)};
    } else {
        values = block_values<Bits, kBlocks>(w, n, b);
    }
    constexpr auto of = [](int lane) { return static_cast<int>(lane * kBlocks / kLanes); };
    const __m256i order = _mm256_setr_epi32(of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7));
    return {{two.even, two.odd}, {permute(values, order)}};
}

// The pieces of as many rows as registers hold, from n on.
template <size_t Bits, size_t Block, class Wide>
ENGINEWRIGHT_INLINE auto chunk_of(const Weights& w, size_t n, size_t c) {
    const auto chunk = read_chunk<Bits, Block>(w, n, c);
    if constexpr (Wide::kRows == 1)
        return chunk;
    else
        return Wide::join(chunk, read_chunk<Bits, Block>(w, n + 1, c));
}

template <size_t Bits, size_t Block, class Wide>
ENGINEWRIGHT_INLINE auto step_of(const Weights& w, size_t n, size_t s) {
    const Step step = read_step<Bits, Block>(w, n, s);
    if constexpr (Wide::kRows == 1)
        return step;
    else
        return Wide::join(step, read_step<Bits, Block>(w, n + 1, s));
}

}  // namespace
}  // namespace enginewright
