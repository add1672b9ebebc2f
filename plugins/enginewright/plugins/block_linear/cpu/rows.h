// How the kernels for x86-64 round rows of x, and where they put them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lanes.h"

namespace enginewright {
namespace {

// What a row of rounded x holds for a chunk (or a step) of W: what meets its codes, in their order;
// against 4 bits a multiplier for each lane of 16 bits; a sum for each lane, of a chunk of halves for
// the lanes of each half. All rows of x lie together for a chunk, so that a tile reads one stream.
template <size_t Bits, size_t Count, size_t Halves>
struct Part {
    static constexpr size_t kMultipliers = Count * kRegister;
    static constexpr size_t kSums = kMultipliers + (Bits == 4 ? kRegister : 0);
    static constexpr size_t kBytes = kSums + Halves * kRegister;
};

// Where the parts of rows of x are.
template <size_t Bits, size_t Block>
struct Rows {
    using ChunkPart = Part<Bits, kRegisters, kHalves<Bits, Block>>;
    using StepPart = Part<Bits, 2, 1>;
    uint8_t* codes;
    size_t rows, chunks, steps;

    Rows(const Weights& w, const Activations& a)
        : codes(a.codes),
          rows(a.rows),
          chunks(w.k / kChunk<Bits>),
          steps((w.k % kChunk<Bits> + kStep<Bits> - 1) / kStep<Bits>) {}

    uint8_t* chunk(size_t c, size_t m) const { return codes + (c * rows + m) * ChunkPart::kBytes; }
    uint8_t* step(size_t s, size_t m) const {
        return chunk(chunks, 0) + (s * rows + m) * StepPart::kBytes;
    }
    size_t bytes_of_row() const { return chunks * ChunkPart::kBytes + steps * StepPart::kBytes; }
};

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

// Where the codes, multiplier and sum of a group of a row of x go. Its codes go in pairs of every
// second element: pair (t, p) is elements 4 t + p and 4 t + p + 2.
struct Place {
    uint8_t* pairs;
    size_t from_half, from_t, from_p;  // bytes between pairs: t is 2 half + the rest of it
    uint8_t* multiplier;
    size_t copies;  // of the multiplier
    uint8_t* sum;
};

template <size_t Bits>
constexpr size_t kPair = 2 * (Bits == 4 ? sizeof(int8_t) : sizeof(int16_t));

template <size_t Bits, size_t Block>
Place place(const Rows<Bits, Block>& x, size_t m, size_t g) {
    using In = Rows<Bits, Block>;
    constexpr size_t kGroups = kChunk<Bits> / kGroup, kStepGroups = kStep<Bits> / kGroup;
    if (g < x.chunks * kGroups) {
        constexpr size_t kParts = kUnit<Bits> / kGroup;  // groups of a unit
        const size_t unit = g % kGroups / kParts, part = g % kParts;
        const size_t lane = unit % 2 * 4 + unit / 2;
        uint8_t* chunk = x.chunk(g / kGroups, m);
        const size_t half = part % kHalves<Bits, Block>;
        const bool dots = Bits == 4 && kDots;
        return {chunk + lane * 4 + part * (dots ? kRegisters / 2 * kRegister : kPair<Bits>),
                dots ? 2 * kRegister : 4 * kRegister,
                dots ? kPair<Bits> : 2 * kRegister,
                kRegister,
                chunk + In::ChunkPart::kMultipliers + lane * 4 + part * 2,
                1,
                chunk + In::ChunkPart::kSums + (half * kLanes + lane) * sizeof(float)};
    }
    constexpr size_t kGroupLanes = kLanes / kStepGroups;
    const size_t left = g - x.chunks * kGroups, part = left % kStepGroups;
    uint8_t* step = x.step(left / kStepGroups, m);
    return {step + part * 4 * kPair<Bits>,
            2 * kPair<Bits>,
            kPair<Bits>,
            kRegister,
            step + In::StepPart::kMultipliers + part * kGroupLanes * 4,
            2 * kGroupLanes,
            step + In::StepPart::kSums + part * kGroupLanes * sizeof(float)};
}

template <size_t Bits>
void store(const Place& place, __m256i group, int multiplier) {
    alignas(kRegister) uint8_t pairs[kRegister];
    const __m256i words = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(group, 0xd8), 0xd8);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    if constexpr (Bits == 4)
        _mm_store_si128(reinterpret_cast<__m128i*>(pairs), _mm_packs_epi16(low, high));
    else
        _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), words);
    for (size_t q = 0; q < kRegisters; ++q)
        std::memcpy(
            place.pairs + q / 4 * place.from_half + q / 2 % 2 * place.from_t + q % 2 * place.from_p,
            pairs + q * kPair<Bits>, kPair<Bits>);
    const auto word = static_cast<int16_t>(multiplier);
    for (size_t i = 0; Bits == 4 && i < place.copies; ++i)
        std::memcpy(place.multiplier + i * sizeof word, &word, sizeof word);
    float sum;
    std::memcpy(&sum, place.sum, sizeof sum);
    sum += static_cast<float>(multiplier * sum_words(group));
    std::memcpy(place.sum, &sum, sizeof sum);
}

// Against 4-bit codes a group has a multiplier, against 8-bit ones it is 1.
template <size_t Bits, size_t Block>
void round_as(const float* x, const Weights& w, const Activations& a, size_t m) {
    constexpr int kSteps = Bits == 4 ? kLargestByte * kLargestWord : kLargestWord;
    const Rows<Bits, Block> rows(w, a);
    for (size_t c = 0; c < rows.chunks; ++c)
        std::memset(rows.chunk(c, m), 0, Rows<Bits, Block>::ChunkPart::kBytes);
    for (size_t s = 0; s < rows.steps; ++s)
        std::memset(rows.step(s, m), 0, Rows<Bits, Block>::StepPart::kBytes);
    const float scale = largest_magnitude(x, w.k) / kSteps;
    a.scales[m] = scale;
    if (!(scale > kSmallestScale && std::isfinite(scale))) return;  // infinity times 0 is NaN
    const float per_code = 1 / (scale * kLargestByte);
    for (size_t g = 0; g < w.k / kGroup; ++g) {
        const float* values = x + g * kGroup;
        int multiplier = 1;
        if (Bits == 4) {
            const float largest = std::ceil(largest_magnitude(values, kGroup) * per_code);
            multiplier = std::min(kLargestWord, static_cast<int>(largest));
            if (multiplier == 0) continue;
        }
        const __m256i group = round_words(values, 1 / (scale * static_cast<float>(multiplier)));
        store<Bits>(place<Bits, Block>(rows, m, g), group, multiplier);
    }
}

}  // namespace
}  // namespace enginewright
