// How the kernels for x86-64 lay out what they multiply; AVX2, FMA and F16C are given.
//
// A chunk is 128 bytes of a row of W: 256 codes of 4 bits, or 128 of 8. Its 8 units (32 or 16
// codes) are turned so that a lane of 32 bits meets one unit only: the products of 8 registers of
// codes with 8 of x are then summed lane by lane, and a lane's sum times the scale of its unit.
// Against 4-bit codes a unit is two groups of x, whose sums of 16 bits meet their multipliers
// first: without dot products of bytes a group has one word of every lane, with them (VNNI) the
// lanes of half of the registers. What is left of a row is taken in steps of 32 bytes, not turned.
//
// No sum of integers can overflow: 16 products of 4 by 8 bits are below 2^15, two of those times
// multipliers, or 16 products of 8 by 16 bits, below 2^31.
//
// | lane j of 8   | of a chunk           | of a step       |
// |---------------|----------------------|-----------------|
// | elements from | unit j % 4 * 2 + j/4 | 8 j (or 4 j) on |

#pragma once

#include <immintrin.h>

#include <cstring>

#include "fetch.h"
#include "tensors.h"
#include "unroll.h"

// What is called for every chunk has to be part of the loops.
#define ENGINEWRIGHT_INLINE [[gnu::always_inline]] inline

namespace enginewright {
namespace {

constexpr size_t kLanes = 8;
constexpr size_t kRegister = 32;
constexpr size_t kRegisters = 8;
constexpr size_t kStepsOfChunk = 4;
// Bytes ahead: the processor's own prefetching stops at the end of a page.
constexpr size_t kAheadOfCodes = 4096;

// Whether the processor sums the products of 4 bytes, or of 2 words, in one go.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kDots = true;
#else
constexpr bool kDots = false;
#endif

// Elements of a step, of a chunk, and of a unit.
template <size_t Bits>
constexpr size_t kStep = kRegister * 8 / Bits;
template <size_t Bits>
constexpr size_t kChunk = kStepsOfChunk * kStep<Bits>;
template <size_t Bits>
constexpr size_t kUnit = kChunk<Bits> / kLanes;

// A block of 16 holds half a unit of 4-bit codes; any other block one unit or more.
template <size_t Bits, size_t Block>
constexpr size_t kHalves = Block < kUnit<Bits> ? 2 : 1;

__m256i load(const void* bytes) { return _mm256_loadu_si256(static_cast<const __m256i*>(bytes)); }

// Fewer bytes than a register holds, where memory may end; zeros after them.
__m256i load_some(const void* bytes, size_t count) {
    uint8_t padded[kRegister] = {};
    std::memcpy(padded, bytes, count);
    return load(padded);
}

}  // namespace
}  // namespace enginewright
