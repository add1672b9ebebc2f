// Arithmetic over the vectors of an instruction set `Isa`, which names
//   kName, kLanes, Vec and Ints (kLanes of float, int32), fma(a, b, c), from_half(kLanes halves),
//   to_half(Vec, halves), from_codes(kLanes bytes).
//
// Everything here is elementwise and rounds alike for every number of lanes. It is included by
// files that are compiled for one instruction set each, so nothing in it may be seen outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "unroll.h"

namespace enginewright {
namespace {

using Half = uint16_t;

template <class Isa>
using VecOf = typename Isa::Vec;
template <class Isa>
using IntsOf = typename Isa::Ints;

template <class To, class From>
[[gnu::always_inline]] inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

template <class Isa>
[[gnu::always_inline]] inline VecOf<Isa> splat(float x) {
    return x - VecOf<Isa>{};
}

template <class Isa>
[[gnu::always_inline]] inline VecOf<Isa> load(const float* from) {
    VecOf<Isa> v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

template <class Isa>
[[gnu::always_inline]] inline VecOf<Isa> load(const Half* from) {
    return Isa::from_half(from);
}

template <class Isa>
[[gnu::always_inline]] inline VecOf<Isa> load(const int8_t* from) {
    return Isa::from_codes(from);
}

// Fewer numbers than a vector has, where memory may end; zeros after them.
template <class Isa, class T>
[[gnu::noinline]] VecOf<Isa> load_some(const T* from, size_t count) {
    T padded[Isa::kLanes] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load<Isa>(padded);
}

template <class Isa>
[[gnu::always_inline]] inline void store(float* to, VecOf<Isa> v) {
    std::memcpy(to, &v, sizeof(v));
}

// The nearest of float16, ties to even; what is beyond the largest becomes the largest.
template <class Isa>
inline void store(Half* to, VecOf<Isa> v) {
    const VecOf<Isa> most = splat<Isa>(65504.0f);
    v = v > most ? most : v;
    v = v < -most ? -most : v;
    Isa::to_half(v, to);
}

// The nearest code, ties to even; what is beyond the last code becomes the last.
template <class Isa>
inline void store(int8_t* to, VecOf<Isa> v) {
    const VecOf<Isa> magic = splat<Isa>(0x1.8p23f);  // leaves the whole part in the lowest bits
    v = v > 127.0f ? splat<Isa>(127.0f) : v;
    v = v > -128.0f ? v : splat<Isa>(-128.0f);  // what is no number, too
    const auto codes = bits<IntsOf<Isa>>(v + magic);
    for (size_t i = 0; i < Isa::kLanes; ++i) to[i] = static_cast<int8_t>(codes[i]);
}

// e^x for x <= 0, 0 below -87. Within 1 ulp: 2^n times a polynomial over |r| <= ln 2 / 2.
template <class Isa>
inline VecOf<Isa> exp_of_negative(VecOf<Isa> x) {
    const VecOf<Isa> magic = splat<Isa>(0x1.8p23f);
    const VecOf<Isa> shifted = Isa::fma(x, splat<Isa>(0x1.715476p0f), magic);
    const VecOf<Isa> n = shifted - magic;
    VecOf<Isa> r = Isa::fma(n, splat<Isa>(-0x1.62e4p-1f), x);
    r = Isa::fma(n, splat<Isa>(-0x1.7f7d1cp-20f), r);
    VecOf<Isa> p = splat<Isa>(0x1.9f0794p-13f);
    p = Isa::fma(p, r, splat<Isa>(0x1.6d8e72p-10f));
    p = Isa::fma(p, r, splat<Isa>(0x1.111274p-7f));
    p = Isa::fma(p, r, splat<Isa>(0x1.55548cp-5f));
    p = Isa::fma(p, r, splat<Isa>(0x1.555554p-3f));
    p = Isa::fma(p, r, splat<Isa>(0.5f));
    p = Isa::fma(p, r * r, r) + 1.0f;
    const IntsOf<Isa> scaled = bits<IntsOf<Isa>>(p) + (bits<IntsOf<Isa>>(shifted) << 23);
    return x < -87.0f ? VecOf<Isa>{} : bits<VecOf<Isa>>(scaled);
}

template <class Isa>
inline float exp_of_negative(float x) {
    return exp_of_negative<Isa>(splat<Isa>(x))[0];
}

template <class Isa>
inline VecOf<Isa> tanh(VecOf<Isa> x) {
    const IntsOf<Isa> sign = bits<IntsOf<Isa>>(x) & std::numeric_limits<int32_t>::min();
    const VecOf<Isa> size = bits<VecOf<Isa>>(bits<IntsOf<Isa>>(x) ^ sign);
    const VecOf<Isa> e = exp_of_negative<Isa>(-2.0f * size);
    return bits<VecOf<Isa>>(bits<IntsOf<Isa>>((1.0f - e) / (1.0f + e)) | sign);
}

}  // namespace
}  // namespace enginewright
