// The kernels for x86-64 with AMX: products of tiles of bfloat16.
//
// Sums are over the steps of K in order, so a row's result is the same in any batch.

#include <thread>

#include "amx.h"

namespace enginewright {
namespace {

constexpr size_t kPairsOfTask = 8;
constexpr size_t kRuns = 12;

// Tiles of x are as wide as it has rows.
Tiles tiles_for(size_t width) { return {{kSide, width * 4}, {kSide, 64}, {kSide, width * 4}}; }

constexpr size_t kTotals = kSide * kSide;

void load_totals(const float* totals) {
    _tile_loadd(0, totals, 64);
    _tile_loadd(1, totals + kTotals, 64);
    _tile_loadd(2, totals + 2 * kTotals, 64);
    _tile_loadd(3, totals + 3 * kTotals, 64);
}

void store_totals(float* totals) {
    _tile_stored(0, totals, 64);
    _tile_stored(1, totals + kTotals, 64);
    _tile_stored(2, totals + 2 * kTotals, 64);
    _tile_stored(3, totals + 3 * kTotals, 64);
}

// What a thread keeps for the blocks of any size.
struct Room {
    alignas(64) uint8_t panels[kRoomSteps * kPanelStep];
    alignas(64) float totals[kPairsOfTask][4 * kTotals];
    Values values;
};

Room& room() {
    static thread_local Room room;
    return room;
}

// Rows [m0, m1) of x by rows [n0, n1) of W, 32 by 32 at a time.
template <size_t Block>
class Multiplication {
  public:
    Multiplication(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1,
                   size_t n0, size_t n1)
        : w_(w), a_(a), y_(y), m0_(m0), m1_(m1), n0_(n0), n1_(n1), steps_(w.k / kDepth) {}

    // Few rows of x, at most 32: while some steps of W are made bfloat16 those before are multiplied.
    void few() const {
        const Tiles tiles = tiles_for(width_of(a_));
        Steps before{};
        for (size_t n = n0_, parity = 0; n < n1_; n += kPanelRows) {
            read_values(n);
            for (size_t step = 0; step < steps_; step += before.count, parity ^= 1) {
                const Steps now{n, step, at_once(steps_ - step),
                                room_.panels + parity * kAtOnce * kPanelStep};
                dequantize(now);
                multiply(before, m0_);
                before = now;
            }
        }
        multiply(before, m0_);
    }

    // Many rows of x: each 32 of them meet several panels, as far as those stay in the cache, so
    // that rows of y are written in longer pieces.
    void many() const {
        const Tiles tiles = tiles_for(width_of(a_));
        const size_t columns = std::max<size_t>(1, kRoomSteps / steps_) * kPanelRows;
        for (size_t n = n0_; n < n1_; n += columns) {
            const size_t end = std::min(n1_, n + columns);
            for (size_t step = 0; step < steps_; step += kRoomSteps) {
                const size_t count = std::min(kRoomSteps, steps_ - step);
                const auto panel = [&](size_t c) {
                    return Steps{c, step, count,
                                 room_.panels + (c - n) / kPanelRows * count * kPanelStep};
                };
                for (size_t c = n; c < end; c += kPanelRows) dequantize_panel(panel(c));
                for (size_t m = m0_; m < m1_; m += kPanelRows)
                    for (size_t c = n; c < end; c += kPanelRows) multiply(panel(c), m);
            }
        }
    }

  private:
    // Steps that are made bfloat16 at a time: whole blocks.
    static constexpr size_t kLeast = std::max<size_t>(1, Block / kDepth);
    static constexpr size_t kAtOnce = std::max<size_t>(4, kLeast);
    static size_t at_once(size_t steps) {
        return steps >= kAtOnce ? kAtOnce : steps > kLeast ? kAtOnce / 2 : kLeast;
    }

    // Some steps of 32 rows of W, from n on, and where they are as bfloat16.
    struct Steps {
        size_t n, first, count;
        uint8_t* panel;
    };

    size_t rows(size_t n) const { return std::min(kPanelRows, n1_ - n); }

    void read_values(size_t n) const { room_.values.read(w_, n, rows(n)); }

    void dequantize(const Steps& steps) const {
        constexpr auto all = dequantize_rows<Block, kAtOnce>,
                       half = dequantize_rows<Block, kAtOnce / 2>,
                       least = dequantize_rows<Block, kLeast>;
        const auto some = steps.count == kAtOnce ? all : steps.count == kLeast ? least : half;
        some(w_, steps.n, steps.first, room_.values, rows(steps.n), steps.panel);
    }

    void dequantize_panel(const Steps& panel) const {
        if (panel.first == 0) read_values(panel.n);
        for (size_t s = 0; s < panel.count;) {
            const size_t count = at_once(panel.count - s);
            dequantize({panel.n, panel.first + s, count, panel.panel + s * kPanelStep});
            s += count;
        }
    }

    // By rows of x from m on. What few rows have summed so far stays in the tiles.
    void multiply(const Steps& steps, size_t m) const {
        if (steps.count == 0) return;
        const bool all = m1_ - m0_ <= kPanelRows, last = steps.first + steps.count == steps_;
        float* totals = room_.totals[(m - m0_) / kPanelRows];
        if (steps.first == 0)
            zero_sums();
        else if (!all)
            load_totals(totals);
        for (size_t s = 0; s < steps.count; ++s)
            multiply_step(m, steps.n, steps.first + s, steps.panel + s * kPanelStep);
        if (last || !all) store_totals(totals);
        if (last) finish(totals, m, steps.n);
    }

    void multiply_step(size_t m, size_t n, size_t step, const uint8_t* panel) const {
        const size_t line = width_of(a_) * 4;
        written_before();
        const bool two_of_w = n + kSide < n1_, two_of_x = m + kSide < m1_;
        // A panel is read once for each rows of x, which shall stay in the nearest cache.
        _tile_stream_loadd(4, panel, 64);
        _tile_loadd(6, x_tile(w_, a_, m, step), line);
        _tile_dpbf16ps(0, 4, 6);
        if (two_of_w) {
            _tile_stream_loadd(5, panel + kTileBytes, 64);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (two_of_x) {
            _tile_loadd(7, x_tile(w_, a_, m + kSide, step), line);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_of_w && two_of_x) _tile_dpbf16ps(3, 5, 7);
    }

    void finish(const float* totals, size_t m, size_t n) const {
        for (size_t t = 0; t < 4; ++t) {
            const size_t row = m + t % 2 * kSide, column = n + t / 2 * kSide;
            if (row < m1_ && column < n1_)
                finish_tile(w_, totals + t * kTotals, y_, row, m1_ - row, column, n1_ - column);
        }
    }

    Room& room_ = room();
    const Weights& w_;
    const Activations& a_;
    float* y_;
    size_t m0_, m1_, n0_, n1_, steps_;
};

size_t bytes_of_row(const Weights& w) { return w.k * 2; }

// Long runs, in which some steps are multiplied while the next are made.
size_t columns_of_task(size_t, size_t n) {
    static const size_t runs = std::max<size_t>(kRuns, 2 * std::thread::hardware_concurrency());
    return (n + runs * kSide - 1) / (runs * kSide) * kSide;
}

template <size_t Block>
void multiply_as(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1, size_t n0,
                 size_t n1) {
    const Multiplication<Block> multiplication(w, a, y, m0, m1, n0, n1);
    if (m1 - m0 <= kPanelRows)
        multiplication.few();
    else
        multiplication.many();
}

void multiply(const Weights& w, const Activations& a, float* y, size_t m0, size_t m1, size_t n0,
              size_t n1) {
    static constexpr decltype(&multiply) kAll[] = {
        multiply_as<16>, multiply_as<32>, multiply_as<64>, multiply_as<128>, multiply_as<256>};
    kAll[__builtin_ctzll(w.block / 16)](w, a, y, m0, m1, n0, n1);
}

}  // namespace

const Kernels kAmx = {bytes_of_row,   pack, multiply, kSide, kPairsOfTask * kPanelRows,
                      columns_of_task};

}  // namespace enginewright
