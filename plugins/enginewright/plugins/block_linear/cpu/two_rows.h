// Registers of AVX-512: two rows of W meet the same x, each in 8 of 16 lanes as under AVX2.
#pragma once

#include "tiles.h"

namespace enginewright {
namespace {

struct TwoRows {
    using Int = __m512i;
    using Float = __m512;
    static constexpr size_t kRows = 2;

    template <size_t Count, size_t Halves>
    ENGINEWRIGHT_INLINE static Piece<TwoRows, Count, Halves> join(
        const Piece<OneRow, Count, Halves>& first, const Piece<OneRow, Count, Halves>& second) {
        Piece<TwoRows, Count, Halves> both;
        unroll<Count>([&](auto i) {
            both.codes[i] =
                _mm512_inserti64x4(_mm512_castsi256_si512(first.codes[i]), second.codes[i], 1);
        });
        unroll<Halves>([&](auto h) {
            const auto &a = first.values[h], &b = second.values[h];
            both.values[h] = {join(a.scales, b.scales), join(a.constants, b.constants)};
        });
        return both;
    }
    static Float join(__m256 first, __m256 second) {
        return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
    }

    static Float load(const float* lanes) { return _mm512_load_ps(lanes); }
    static void store(float* lanes, Float value) { _mm512_store_ps(lanes, value); }
    static Int load_codes(const uint8_t* x) {
        return _mm512_broadcast_i64x4(OneRow::load_codes(x));
    }
    static Float load_sums(const uint8_t* x) {
        return _mm512_broadcast_f32x8(OneRow::load_sums(x));
    }
    template <size_t Bits>
    static Int multiply(Int w, Int x) {
        return Bits == 4 ? _mm512_maddubs_epi16(w, x) : _mm512_madd_epi16(w, x);
    }
    template <size_t Bits>
    static Int add(Int a, Int b) {
        return Bits == 4 ? _mm512_add_epi16(a, b) : _mm512_add_epi32(a, b);
    }
    static Int zero() { return _mm512_setzero_si512(); }
#if defined(__AVX512VNNI__)
    template <size_t Bits>
    static Int dot(Int sum, Int w, Int x) {
        return Bits == 4 ? _mm512_dpbusd_epi32(sum, w, x) : _mm512_dpwssd_epi32(sum, w, x);
    }
#endif
    static Int join_words(Int low, Int high) {
        return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
    }
    static Int words_of_half(Int words, bool second) {
        return _mm512_and_si512(words, _mm512_set1_epi32(second ? -0x10000 : 0xffff));
    }
    static Int multiply_words(Int a, Int b) { return _mm512_madd_epi16(a, b); }
    static Float to_float(Int lanes) { return _mm512_cvtepi32_ps(lanes); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace enginewright
