// The kernels for x86-64 with AMX: products of tiles of bfloat16.
//
// Sums are over the steps of K in order, so a row's result is the same in any batch.

#include <thread>

#include "amx.h"

namespace enginewright {
namespace {

constexpr size_t kPairsOfTask = 8;
constexpr size_t kPanels = 8;
constexpr size_t kRunsOfCore = 3;
// Steps of 32 rows of x that stay in the nearest cache while they meet several panels.
constexpr size_t kNearSteps = 18;

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

// Adds to the sums the products of steps of one or two tiles of W with those of x. With `Far` W comes
// from the second cache, and the nearest is left to x.
template <bool Far, bool TwoOfW, bool TwoOfX>
void multiply_steps(const uint8_t* panel, const uint8_t* x0, const uint8_t* x1, size_t line,
                    size_t count) {
    for (; count; --count, panel += kPanelStep, x0 += kSide * line, x1 += kSide * line) {
        if constexpr (Far)
            _tile_stream_loadd(4, panel, 64);
        else
            _tile_loadd(4, panel, 64);
        _tile_loadd(6, x0, line);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (TwoOfW) {
            if constexpr (Far)
                _tile_stream_loadd(5, panel + kTileBytes, 64);
            else
                _tile_loadd(5, panel + kTileBytes, 64);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (TwoOfX) {
            _tile_loadd(7, x1, line);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (TwoOfW && TwoOfX) _tile_dpbf16ps(3, 5, 7);
    }
}

// What a thread keeps for the blocks of any size.
struct Room {
    alignas(64) uint8_t panels[kRoomSteps * kPanelStep];
    alignas(64) float totals[kPairsOfTask + kPanels][4 * kTotals];
    Values values;
};

Room& room() {
    static thread_local Room room;
    return room;
}

// Rows [m0, m1) of x by rows [n0, n1) of W, 32 by 32 at a time.
template <size_t Bits, size_t Block>
class Multiplication {
  public:
    Multiplication(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
                   size_t n0, size_t n1)
        : w_(w), a_(a), y_(y), m0_(m0), m1_(m1), n0_(n0), n1_(n1), steps_(w.k / kDepth) {}

    // Few rows of x, at most 32: while some steps of W are made bfloat16 those before are multiplied,
    // and what is summed so far stays in the tiles.
    void few() const {
        const Tiles tiles = tiles_for(width_of(a_));
        Steps before{};
        for (size_t n = n0_, parity = 0; n < n1_; n += kPanelRows) {
            read_values(n);
            for (size_t step = 0; step < steps_; step += before.count, parity ^= 1) {
                const Steps now{n, step, at_once(steps_ - step),
                                room_.panels + parity * kAtOnce * kPanelStep};
                dequantize(now);
                add_few(before);
                before = now;
            }
        }
        add_few(before);
    }

    // Many rows of x: each 32 of them meet several panels, as far as those stay in the cache, so
    // that rows of y are written in longer pieces.
    void many() const {
        const Tiles tiles = tiles_for(width_of(a_));
        const size_t panels = std::clamp<size_t>(kRoomSteps / steps_, 1, kPanels);
        for (size_t n = n0_; n < n1_; n += panels * kPanelRows) {
            const size_t end = std::min(n1_, n + panels * kPanelRows);
            for (size_t step = 0; step < steps_; step += kRoomSteps) {
                const size_t count = std::min(kRoomSteps, steps_ - step);
                for (size_t c = n; c < end; c += kPanelRows)
                    dequantize_panel({c, step, count, panel(c - n, count)});
                for (size_t m = m0_; m < m1_; m += kPanelRows) add_many(m, n, end, step, count);
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
    bool last(const Steps& steps) const { return steps.first + steps.count == steps_; }
    uint8_t* panel(size_t row, size_t count) const {
        return room_.panels + row / kPanelRows * count * kPanelStep;
    }

    void read_values(size_t n) const { room_.values.read(w_, n, rows(n)); }

    void dequantize(const Steps& steps) const {
        constexpr auto all = dequantize_rows<Bits, Block, kAtOnce>,
                       half = dequantize_rows<Bits, Block, kAtOnce / 2>,
                       least = dequantize_rows<Bits, Block, kLeast>;
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

    void add_few(const Steps& steps) const {
        if (steps.count == 0) return;
        if (steps.first == 0) zero_sums();
        multiply<false>(steps, m0_);
        if (last(steps)) finish(room_.totals[0], m0_, steps.n);
    }

    // The steps of room for 32 rows of x by panels from n on. Sums are kept aside for each panel, or,
    // where only one has room, for each rows of x.
    void add_many(size_t m, size_t n, size_t end, size_t first, size_t count) const {
        const size_t pieces = (count + kNearSteps - 1) / kNearSteps;
        for (size_t i = 0; i < pieces; ++i) {
            const size_t s = count * i / pieces, next = count * (i + 1) / pieces;
            for (size_t c = n; c < end; c += kPanelRows) {
                const Steps steps{c, first + s, next - s, panel(c - n, count) + s * kPanelStep};
                float* totals = room_.totals[(m - m0_ + c - n) / kPanelRows];
                if (steps.first == 0)
                    zero_sums();
                else
                    load_totals(totals);
                multiply<true>(steps, m);
                if (last(steps))
                    finish(totals, m, c);
                else
                    store_totals(totals);
            }
        }
    }

    // By rows of x from m on.
    template <bool Far>
    void multiply(const Steps& steps, size_t m) const {
        static constexpr decltype(&multiply_steps<Far, true, true>) kAll[2][2] = {
            {multiply_steps<Far, false, false>, multiply_steps<Far, false, true>},
            {multiply_steps<Far, true, false>, multiply_steps<Far, true, true>}};
        const auto some = kAll[steps.n + kSide < n1_][m + kSide < m1_];
        written_before();
        some(steps.panel, x_tile(w_, a_, m, steps.first), x_tile(w_, a_, m + kSide, steps.first),
             width_of(a_) * 4, steps.count);
    }

    void finish(float* totals, size_t m, size_t n) const {
        _tile_stored(0, totals, 64);
        _tile_stored(2, totals + 2 * kTotals, 64);
        if (m + kSide < m1_) {
            _tile_stored(1, totals + kTotals, 64);
            _tile_stored(3, totals + 3 * kTotals, 64);
        }
        for (size_t t = 0; t < 4; ++t) {
            const size_t row = m + t % 2 * kSide, column = n + t / 2 * kSide;
            if (row < m1_ && column < n1_)
                finish_tile(w_, totals + t * kTotals, y_, row, m1_ - row, column, n1_ - column);
        }
    }

    Room& room_ = room();
    const Weights& w_;
    const Activations& a_;
    const Result& y_;
    size_t m0_, m1_, n0_, n1_, steps_;
};

size_t bytes_of_row(const Weights& w) { return w.k * 2; }

// Long runs of whole panels, in which some steps are multiplied while the next are made; as many
// for each core, and few, so that all end together.
size_t columns_of_task(size_t, size_t n) {
    static const size_t runs = kRunsOfCore * std::max(1u, std::thread::hardware_concurrency());
    return (n + runs * kPanelRows - 1) / (runs * kPanelRows) * kPanelRows;
}

template <size_t Bits, size_t Block>
void multiply_as(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
                 size_t n0, size_t n1) {
    const Multiplication<Bits, Block> multiplication(w, a, y, m0, m1, n0, n1);
    if (m1 - m0 <= kPanelRows)
        multiplication.few();
    else
        multiplication.many();
}

void multiply(const Weights& w, const Activations& a, const Result& y, size_t m0, size_t m1,
              size_t n0, size_t n1) {
    static constexpr decltype(&multiply) kAll[2][5] = {
        {multiply_as<4, 16>, multiply_as<4, 32>, multiply_as<4, 64>, multiply_as<4, 128>,
         multiply_as<4, 256>},
        {multiply_as<8, 16>, multiply_as<8, 32>, multiply_as<8, 64>, multiply_as<8, 128>,
         multiply_as<8, 256>}};
    kAll[w.bits == 8][__builtin_ctzll(w.block / 16)](w, a, y, m0, m1, n0, n1);
}

}  // namespace

const Kernels kAmx = {
    "amx", bytes_of_row, pack, multiply, kSide, kPairsOfTask * kPanelRows, columns_of_task};

}  // namespace enginewright
