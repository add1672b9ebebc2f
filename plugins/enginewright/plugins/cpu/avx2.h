// Vectors of AVX2, with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace enginewright {
namespace {

struct Avx2 {
    static constexpr const char* kName = "avx2";
    static constexpr size_t kLanes = 8;
    typedef float Vec __attribute__((vector_size(32)));
    typedef int32_t Ints __attribute__((vector_size(32)));

    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
    static Vec from_half(const Half* from) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static void to_half(Vec v, Half* to) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                         _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    static Vec from_codes(const int8_t* from) {
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    }
};

}  // namespace
}  // namespace enginewright
