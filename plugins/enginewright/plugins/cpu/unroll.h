// Loops that are unrolled for certain. It is included by files that are compiled for one instruction
// set each, so it may not be seen outside of them.
#pragma once

#include <cstddef>
#include <utility>

namespace enginewright {
namespace {

// Calls f with 0 .. N - 1 as constants, so that what it indexes stays in registers.
template <std::size_t N, class F>
[[gnu::always_inline]] inline void unroll(const F& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<std::size_t, I>{}), ...);
    }(std::make_index_sequence<N>{});
}

}  // namespace
}  // namespace enginewright
