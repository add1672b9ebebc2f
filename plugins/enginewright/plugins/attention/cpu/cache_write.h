// Rotary, and the write of new keys and values to the cache.
#pragma once

#include "step.h"
#include "vectors.h"

namespace enginewright::attention {
namespace {

// Where a token of a row is in the pool: its block for one head of keys, and its place in that.
struct Place {
    size_t block, offset;
};

inline Place place(const Step& step, size_t row, size_t kv_head, size_t position) {
    const size_t page =
        static_cast<size_t>(step.block_table[row * step.table_width + position / step.block_size]);
    return {(page * step.kv_heads + kv_head) * step.head_dim * step.block_size,
            position % step.block_size};
}

// A head of a query or key at a position; without cos it is copied.
inline void rotate(const Step& step, const float* x, size_t position, float* __restrict out) {
    const size_t pairs = step.rotated;
    const float* cos = step.cos + position * pairs;
    const float* sin = step.sin + position * pairs;
    if (step.interleaved) {
        for (size_t i = 0; i < pairs; ++i) {
            out[2 * i] = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
            out[2 * i + 1] = x[2 * i + 1] * cos[i] + x[2 * i] * sin[i];
        }
    } else {
        for (size_t i = 0; i < pairs; ++i) {
            out[i] = x[i] * cos[i] - x[pairs + i] * sin[i];
            out[pairs + i] = x[pairs + i] * cos[i] + x[i] * sin[i];
        }
    }
    for (size_t i = 2 * pairs; i < step.head_dim; ++i) out[i] = x[i];
}

// Numbers in the type of the cache.
template <class Isa, class T>
void convert(const float* from, size_t count, const float* scale, T* to) {
    for (size_t i = 0; i < count; i += Isa::kLanes) {
        const VecOf<Isa> x = load<Isa>(from + i);
        store<Isa>(to + i, scale ? x / *scale : x);
    }
}

template <class Isa, class T>
void write(const Step& step, size_t row, size_t kv_head, size_t first, size_t last) {
    float numbers[kLargestHead + kPadding] = {};  // vectors may reach beyond a head
    T codes[kLargestHead + kPadding];
    const size_t head_dim = step.head_dim, past = static_cast<size_t>(step.past_lengths[row]);
    T* k_cache = static_cast<T*>(step.k_cache);
    T* v_cache = static_cast<T*>(step.v_cache);
    for (size_t at = first; at < last; ++at) {
        const size_t from = (row * step.length + at) * step.kv_width + kv_head * head_dim;
        const Place to = place(step, row, kv_head, past + at);
        rotate(step, step.k + from, past + at, numbers);
        convert<Isa>(numbers, head_dim, step.k_scale ? step.k_scale + kv_head : nullptr, codes);
        T* key = k_cache + to.block + to.offset;
        for (size_t d = 0; d < head_dim; ++d) key[d * step.block_size] = codes[d];
        std::memcpy(numbers, step.v + from, head_dim * sizeof(float));
        convert<Isa>(numbers, head_dim, step.v_scale ? step.v_scale + kv_head : nullptr, codes);
        std::memcpy(v_cache + to.block + to.offset * head_dim, codes, head_dim * sizeof(T));
    }
}

}  // namespace
}  // namespace enginewright::attention
