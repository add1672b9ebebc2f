// Fetching ahead of the reading.
#pragma once

#include <cstddef>

namespace enginewright {
namespace {

constexpr size_t kLine = 64;

// The lines of so many bytes, to the nearest cache. GCC takes a function that does nothing but
// prefetch for one without effect, and drops the calls of it that it has not inlined at once: a
// lambda, say.
template <size_t Bytes>
[[gnu::always_inline]] inline void fetch(const void* from) {
    const char* at = static_cast<const char*>(from);
    for (size_t byte = 0; byte < Bytes; byte += kLine) __builtin_prefetch(at + byte);
}

// The same to the second cache.
template <size_t Bytes>
[[gnu::always_inline]] inline void fetch_later(const void* from) {
    const char* at = static_cast<const char*>(from);
    for (size_t byte = 0; byte < Bytes; byte += kLine) __builtin_prefetch(at + byte, 0, 2);
}

}  // namespace
}  // namespace enginewright
