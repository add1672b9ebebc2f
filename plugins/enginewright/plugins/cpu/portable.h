// Vectors of 4, which every compiler has an answer to. Products and sums are rounded apart, so
// results differ in the last bits from those of the other instruction sets.
#pragma once

#include "vectors.h"

namespace enginewright {
namespace {

struct Portable {
    static constexpr const char* kName = "portable";
    static constexpr size_t kLanes = 4;
    typedef float Vec __attribute__((vector_size(16)));
    typedef int32_t Ints __attribute__((vector_size(16)));
    typedef int8_t Bytes __attribute__((vector_size(4)));
    typedef Half Halves __attribute__((vector_size(8)));

    static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
    static Vec from_half(const Half* from) {
        Halves halves;
        std::memcpy(&halves, from, sizeof(halves));
        const Ints wide = __builtin_convertvector(halves, Ints);
        const Ints size = (wide & 0x7fff) << 13;  // the exponent is 112 too low, of all but inf
        const Ints finite = bits<Ints>(bits<Vec>(size) * 0x1p112f);
        const Ints special = size | 0x7f800000;
        return bits<Vec>((wide & 0x8000) << 16 | ((wide & 0x7c00) == 0x7c00 ? special : finite));
    }
    static void to_half(Vec v, Half* to) {
        for (size_t i = 0; i < kLanes; ++i) to[i] = half(v[i]);
    }
    static Vec from_codes(const int8_t* from) {
        Bytes codes;
        std::memcpy(&codes, from, sizeof(codes));
        return __builtin_convertvector(codes, Vec);
    }

  private:
    static Half half(float x) {
        const uint32_t all = bits<uint32_t>(x), size = all & 0x7fffffff;
        const Half sign = static_cast<Half>(all >> 16 & 0x8000);
        if (size > 0x7f800000) return sign | 0x7e00;  // no number
        if (size < 0x38800000) {  // below 2^-14 steps are of 2^-24: a sum rounds to them
            const float rounded = bits<float>(size) + 0.5f;
            return sign | static_cast<Half>(bits<uint32_t>(rounded) - bits<uint32_t>(0.5f));
        }
        const uint32_t even = size + 0xfff + (size >> 13 & 1);  // ties to even
        return sign | static_cast<Half>((even >> 13) - (112 << 10));
    }
};

}  // namespace
}  // namespace enginewright
