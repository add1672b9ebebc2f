// The two products of attention, over a tile of queries and a part of one block of the cache.
//
// R rows of queries meet each vector of keys, or of values, that is loaded. How a product is cut
// into tiles does not change a bit of it: every sum is one chain of fused multiply-adds.
#pragma once

#include <algorithm>

#include "fetch.h"
#include "step.h"
#include "vectors.h"

namespace enginewright::attention {
namespace {

// Rows of a tile: as many sums as the registers of AVX2 hold.
constexpr size_t kRows = 6;

// Vectors of a tile beside R rows: R * kWidth sums; AVX-512 has twice the registers.
template <class Isa, size_t R>
constexpr size_t kWidth = R <= 3 || Isa::kLanes == 16 ? 4 : 2;

template <size_t R>
struct Rows {
    static constexpr size_t count = R;
};

// Calls f with Rows<R> for the R at hand.
template <class F>
[[gnu::always_inline]] inline void with_rows(size_t rows, const F& f) {
    switch (rows) {
        case 1:
            return f(Rows<1>{});
        case 2:
            return f(Rows<2>{});
        case 3:
            return f(Rows<3>{});
        case 4:
            return f(Rows<4>{});
        case 5:
            return f(Rows<5>{});
        default:
            return f(Rows<kRows>{});
    }
}

// A block that is being read, and the next one, which is fetched on the way.
template <class T>
struct Block {
    const T *at, *next;

    Block from(size_t offset) const { return {at + offset, next + offset}; }
};

template <class Isa, size_t V, class T>
[[gnu::always_inline]] inline void prefetch(const T* from) {
    fetch<V * Isa::kLanes * sizeof(T)>(from);
}

// scores [R, kChunk] from q [D, R] and keys [D, block size], for V vectors of keys.
template <class Isa, size_t R, size_t V, class T>
void score_tile(const float* q, Block<T> block, size_t head_dim, size_t block_size, float* scores) {
    VecOf<Isa> sums[R][V] = {};
    for (size_t d = 0; d < head_dim; ++d) {
        const T* keys = block.at + d * block_size;
        prefetch<Isa, V>(block.next + d * block_size);
        VecOf<Isa> key[V];
        unroll<V>([&](auto v) { key[v] = load<Isa>(keys + v * Isa::kLanes); });
        unroll<R>([&](auto r) {
            const VecOf<Isa> x = splat<Isa>(q[d * R + r]);
            unroll<V>([&](auto v) { sums[r][v] = Isa::fma(x, key[v], sums[r][v]); });
        });
    }
    unroll<R>([&](auto r) {
        unroll<V>([&](auto v) { store<Isa>(scores + r * kChunk + v * Isa::kLanes, sums[r][v]); });
    });
}

// Scores of the keys [first, last) of a block; those beside them may be written as well.
template <class Isa, class T>
void score_block(const Step& step, size_t rows, const float* q, Block<T> keys, size_t first,
                 size_t last, float* scores) {
    with_rows(rows, [&]<size_t R>(Rows<R>) {
        constexpr size_t vectors = std::min(kWidth<Isa, R>, kSmallestBlock / Isa::kLanes);
        constexpr size_t width = vectors * Isa::kLanes;
        for (size_t key = first / width * width; key < last; key += width)
            score_tile<Isa, R, vectors>(q, keys.from(key), step.head_dim, step.block_size,
                                        scores + key);
    });
}

// sums [R, ...] += weights [R, kChunk] times values [count, D], for V vectors of D; of one vector
// only the first `lanes` numbers are there.
template <class Isa, size_t R, size_t V, class T>
[[gnu::always_inline]] inline void weigh_tile(const float* weights, Block<T> block, size_t count,
                                              size_t head_dim, float* into, size_t width,
                                              size_t lanes = Isa::kLanes) {
    VecOf<Isa> sums[R][V];
    unroll<R>([&](auto r) {
        unroll<V>([&](auto v) { sums[r][v] = load<Isa>(into + r * width + v * Isa::kLanes); });
    });
    for (size_t key = 0; key < count; ++key) {
        const T* from = block.at + key * head_dim;
        prefetch<Isa, V>(block.next + key * head_dim);
        VecOf<Isa> value[V];
        unroll<V>([&](auto v) {
            value[v] = lanes == Isa::kLanes ? load<Isa>(from + v * Isa::kLanes)
                                            : load_some<Isa>(from, lanes);
        });
        unroll<R>([&](auto r) {
            const VecOf<Isa> w = splat<Isa>(weights[r * kChunk + key]);
            unroll<V>([&](auto v) { sums[r][v] = Isa::fma(w, value[v], sums[r][v]); });
        });
    }
    unroll<R>([&](auto r) {
        unroll<V>([&](auto v) { store<Isa>(into + r * width + v * Isa::kLanes, sums[r][v]); });
    });
}

// The same over all of D. `values` and `weights` begin at the first of `count` keys.
template <class Isa, class T>
void weigh(const Step& step, size_t rows, const float* weights, Block<T> values, size_t count,
           float* into, size_t width) {
    if (count == 0) return;
    with_rows(rows, [&]<size_t R>(Rows<R>) {
        constexpr size_t vectors = kWidth<Isa, R>, wide = vectors * Isa::kLanes;
        const size_t head_dim = step.head_dim;
        size_t d = 0;
        for (; d + wide <= head_dim; d += wide)
            weigh_tile<Isa, R, vectors>(weights, values.from(d), count, head_dim, into + d, width);
        for (; d + Isa::kLanes <= head_dim; d += Isa::kLanes)
            weigh_tile<Isa, R, 1>(weights, values.from(d), count, head_dim, into + d, width);
        if (d < head_dim)
            weigh_tile<Isa, R, 1>(weights, values.from(d), count, head_dim, into + d, width,
                                  head_dim - d);
    });
}

}  // namespace
}  // namespace enginewright::attention
