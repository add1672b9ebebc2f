// Vectors of AVX-512 (F, BW, VL).
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace enginewright {
namespace {

struct Avx512 {
    static constexpr const char* kName = "avx512";
    static constexpr size_t kLanes = 16;
    typedef float Vec __attribute__((vector_size(64)));
    typedef int32_t Ints __attribute__((vector_size(64)));

    static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
    static Vec from_half(const Half* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static void to_half(Vec v, Half* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                            _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    static Vec from_codes(const int8_t* from) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    }
};

}  // namespace
}  // namespace enginewright
