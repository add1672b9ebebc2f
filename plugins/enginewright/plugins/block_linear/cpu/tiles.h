// The product of rows of x with rows of W, on x86-64.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "rows.h"
#include "weights.h"

namespace enginewright {
namespace {

// Rows of x by rows of W whose sums are kept apart at a time, and bytes of x that meet them.
constexpr size_t kTileRows = 32;
constexpr size_t kTileColumns = 16;
constexpr size_t kTileBytes = 16384;

// The sums of a piece's products with x, lane by lane; against 4-bit codes in words.
template <size_t Bits, class Wide, size_t Count, size_t Halves>
ENGINEWRIGHT_INLINE typename Wide::Int products(const Piece<Wide, Count, Halves>& w,
                                                const uint8_t* x) {
    const auto codes = [x](size_t i) { return Wide::load_codes(x + i * kRegister); };
    typename Wide::Int sums[2];
    if constexpr (kDots) {
        constexpr bool kChunk = Count == kRegisters;
        sums[0] = sums[1] = Wide::zero();
        unroll<Count>([&](auto i) {
            auto& sum = sums[kChunk ? i * 2 / Count : 0];
            sum = Wide::template dot<Bits>(sum, w.codes[i], codes(i));
        });
        if constexpr (Bits == 4) return Wide::join_words(sums[0], sums[1]);
        return Wide::template add<Bits>(sums[0], sums[1]);
    } else {
        unroll<2>([&](auto i) { sums[i] = Wide::template multiply<Bits>(w.codes[i], codes(i)); });
        unroll<Count - 2>([&](auto i) {
            const auto product = Wide::template multiply<Bits>(w.codes[i + 2], codes(i + 2));
            sums[i % 2] = Wide::template add<Bits>(sums[i % 2], product);
        });
        return Wide::template add<Bits>(sums[0], sums[1]);
    }
}

// total + constants * sums + products * scales, lane by lane; x is the part that meets the piece.
template <size_t Bits, class Wide, size_t Count, size_t Halves>
ENGINEWRIGHT_INLINE typename Wide::Float add(const Piece<Wide, Count, Halves>& w, const uint8_t* x,
                                             typename Wide::Float total) {
    using In = Part<Bits, Count, Halves>;
    const auto sums = products<Bits>(w, x);
    unroll<Halves>([&](auto h) {
        auto whole = sums;
        if constexpr (Bits == 4) {
            auto multipliers = Wide::load_codes(x + In::kMultipliers);
            if constexpr (Halves == 2) multipliers = Wide::words_of_half(multipliers, h == 1);
            whole = Wide::multiply_words(sums, multipliers);
        }
        const auto of_x = Wide::load_sums(x + In::kSums + h * kRegister);
        total = Wide::multiply_add(w.values[h].constants, of_x, total);
        total = Wide::multiply_add(Wide::to_float(whole), w.values[h].scales, total);
    });
    return total;
}

// Lanes 0 to 7: ((0 + 2) + (1 + 3)) + ((4 + 6) + (5 + 7)).
float sum_lanes(__m256 v) {
    v = _mm256_add_ps(v, _mm256_permute_ps(v, 0x4e));
    v = _mm256_add_ps(v, _mm256_movehdup_ps(v));
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}

void finish(const Weights& w, const Activations& a, __m256 total, const Result& y, size_t m,
            size_t n) {
    *y.at(m, n) = std::fma(a.scales[m], sum_lanes(total), w.bias ? w.bias[n] : 0.0f);
}

// The same of four neighbours at once; `total(i)` gives the lanes of element i.
template <class Total>
void finish_four(const Weights& w, const Activations& a, const Total& total, const Result& y,
                 size_t m, size_t n) {
    const auto add_pairs = [](__m256 first, __m256 second) {
        return _mm256_add_ps(_mm256_shuffle_ps(first, second, 0x44),
                             _mm256_shuffle_ps(first, second, 0xee));
    };
    const __m256 low = add_pairs(total(0), total(1)), high = add_pairs(total(2), total(3));
    const __m256 halves =
        _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd));
    const __m128 sums =
        _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __m128 bias = w.bias ? _mm_loadu_ps(w.bias + n) : _mm_setzero_ps();
    _mm_storeu_ps(y.at(m, n), _mm_fmadd_ps(_mm_set1_ps(a.scales[m]), sums, bias));
}

// Few rows of x against W as it is stored, row by row: each of its tensors is read as one stream,
// which the processor fetches ahead; it loses sight of several that lie close together.
template <size_t Bits, size_t Block, size_t Count>
void multiply_few(const Weights& w, const Activations& a, const Result& y, size_t m, size_t n0,
                  size_t n1) {
    const Rows<Bits, Block> x(w, a);
    for (size_t n = n0; n < n1; ++n) {
        __m256 total[Count];
        unroll<Count>([&](auto r) { total[r] = _mm256_setzero_ps(); });
        for (size_t c = 0; c < x.chunks; ++c) {
            const auto chunk = read_chunk<Bits, Block>(w, n, c);
            unroll<Count>(
                [&](auto r) { total[r] = add<Bits>(chunk, x.chunk(c, m + r), total[r]); });
        }
        for (size_t s = 0; s < x.steps; ++s) {
            const Step step = read_step<Bits, Block>(w, n, s);
            unroll<Count>([&](auto r) { total[r] = add<Bits>(step, x.step(s, m + r), total[r]); });
        }
        unroll<Count>([&](auto r) { finish(w, a, total[r], y, m + r, n); });
    }
}

// A tile of y: the totals of its elements are kept while x is taken in panels that stay in the
// nearest cache, for all rows of W that the tile has.
template <size_t Bits, size_t Block, class Wide>
class Tile {
  public:
    Tile(const Weights& w, const Activations& a, size_t m, size_t rows)
        : w_(w), a_(a), x_(w, a), m_(m), rows_(rows) {}

    void multiply(const Result& y, size_t n0, size_t n1) {
        const size_t whole = n0 + (n1 - n0) / Wide::kRows * Wide::kRows;
        columns<Wide>(y, n0, whole);
        columns<OneRow>(y, whole, n1);
    }

  private:
    template <class Registers>
    void columns(const Result& y, size_t n0, size_t n1) {
        const auto totals = [&](size_t n) { return totals_ + (n - n0) * kTileRows * kLanes; };
        const auto at_once = [&](const auto& each) {
            for (size_t n = n0; n < n1; n += Registers::kRows) each(n);
        };
        const size_t panel = std::max<size_t>(1, kTileBytes / (rows_ * In::ChunkPart::kBytes));
        std::memset(totals_, 0, (n1 - n0) * kTileRows * kLanes * sizeof(float));
        for (size_t first = 0; first < x_.chunks; first += panel)
            at_once([&](size_t n) {
                for (size_t c = first; c < std::min(x_.chunks, first + panel); ++c)
                    add_rows<In::ChunkPart::kBytes>(
                        totals(n), chunk_of<Bits, Block, Registers>(w_, n, c), x_.chunk(c, m_));
            });
        at_once([&](size_t n) {
            for (size_t s = 0; s < x_.steps; ++s)
                add_rows<In::StepPart::kBytes>(totals(n), step_of<Bits, Block, Registers>(w_, n, s),
                                               x_.step(s, m_));
        });
        for (size_t r = 0; r < rows_; ++r) {
            const auto total = [&](size_t n) {
                const size_t row = r * Registers::kRows + n % Registers::kRows;
                return _mm256_load_ps(totals(n0 + n - n % Registers::kRows) + row * kLanes);
            };
            size_t n = 0;
            for (; n + 4 <= n1 - n0; n += 4)
                finish_four(w_, a_, [&](size_t i) { return total(n + i); }, y, m_ + r, n0 + n);
            for (; n < n1 - n0; ++n) finish(w_, a_, total(n), y, m_ + r, n0 + n);
        }
    }

    template <size_t Bytes, class Registers, size_t Count, size_t Halves>
    ENGINEWRIGHT_INLINE void add_rows(float* totals, const Piece<Registers, Count, Halves>& piece,
                                      const uint8_t* x) {
        for (size_t r = 0; r < rows_; ++r, x += Bytes, totals += kLanes * Registers::kRows)
            Registers::store(totals, add<Bits>(piece, x, Registers::load(totals)));
    }

    using In = Rows<Bits, Block>;
    const Weights& w_;
    const Activations& a_;
    const In x_;
    const size_t m_, rows_;
    alignas(64) float totals_[kTileColumns * kTileRows * kLanes];
};

template <size_t Bits, size_t Block, class Wide>
void multiply_as(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
                 size_t n0, size_t n1) {
    const auto few = std::array{multiply_few<Bits, Block, 1>, multiply_few<Bits, Block, 2>,
                                multiply_few<Bits, Block, 3>, multiply_few<Bits, Block, 4>};
    if (m1 - m0 <= few.size()) return few[m1 - m0 - 1](w, a, y, m0, n0, n1);
    for (size_t m = m0; m < m1; m += kTileRows) {
        Tile<Bits, Block, Wide> tile(w, a, m, std::min(m1 - m, kTileRows));
        for (size_t n = n0; n < n1; n += kTileColumns)
            tile.multiply(y, n, std::min(n1, n + kTileColumns));
    }
}

template <size_t Bits, size_t Block>
size_t bytes_as(const Weights& w) {
    return Rows<Bits, Block>(w, {}).bytes_of_row();
}

// The functions for W's kind of blocks.
struct Functions {
    decltype(Kernels::bytes_of_row) bytes_of_row;
    decltype(Kernels::round_rows) round_row;
    decltype(Kernels::multiply) multiply;
};

template <size_t Bits, size_t Block, class Wide>
constexpr Functions kFunctions = {bytes_as<Bits, Block>, round_as<Bits, Block>,
                                  multiply_as<Bits, Block, Wide>};

template <class Wide>
const Functions& functions(const Weights& w) {
    static constexpr Functions kAll[2][5] = {
        {kFunctions<4, 16, Wide>, kFunctions<4, 32, Wide>, kFunctions<4, 64, Wide>,
         kFunctions<4, 128, Wide>, kFunctions<4, 256, Wide>},
        {kFunctions<8, 16, Wide>, kFunctions<8, 32, Wide>, kFunctions<8, 64, Wide>,
         kFunctions<8, 128, Wide>, kFunctions<8, 256, Wide>}};
    return kAll[w.bits == 8][__builtin_ctzll(w.block / 16)];
}

template <class Wide>
size_t bytes_of_row(const Weights& w) {
    return functions<Wide>(w).bytes_of_row(w);
}

template <class Wide>
void round_row(const float* x, const Weights& w, const Activations& a, size_t m) {
    functions<Wide>(w).round_row(x, w, a, m);
}

template <class Wide>
void multiply(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
              size_t n0, size_t n1) {
    functions<Wide>(w).multiply(w, a, y, m0, m1, n0, n1);
}

template <class Wide>
constexpr Kernels kernels(const char* name) {
    return {name, bytes_of_row<Wide>, round_row<Wide>, multiply<Wide>};
}

}  // namespace
}  // namespace enginewright
