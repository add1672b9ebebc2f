// One task: queries of one head of keys, chunk after chunk.
//
// | room of a task | shape                                 | meaning                               |
// |----------------|---------------------------------------|---------------------------------------|
// | queries        | [R, ...]: a tile is [D, its rows]     | rotated, times scale                  |
// | scores         | [R, chunk]                            | then weights                          |
// | chunk          | [R, partial width]                    | maximum, sum, weighted values         |
// | sum            | [R, partial width]                    | of the chunks so far                  |
// | numbers        | [block size * D]                      | a block as float32, where many tiles read it |
//
// R rows: row r is position r / group of the task, head r % group.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cache_write.h"
#include "tiles.h"

namespace enginewright::attention {
namespace {

constexpr size_t kLanesOfSums = 16;
constexpr size_t kTaskRows = 96;

// Keys [first, last), in a chunk or in all.
struct Range {
    size_t first, last;

    bool empty() const { return first >= last; }
    size_t count() const { return empty() ? 0 : last - first; }
    Range within(size_t from, size_t to) const {
        return {first < from ? from : first, last < to ? last : to};
    }
};

// A row's result over some chunks. maximum is -inf where there was none.
struct Partial {
    float* at;

    float& maximum() const { return at[0]; }
    float& sum() const { return at[1]; }
    float* values() const { return at + kPadding; }
};

// Floats of room that a task needs.
size_t room_of(const Step& step, size_t positions) {
    const size_t rows = positions * step.group();
    return rows * (step.head_dim + kChunk + 2 * step.partial_width()) +
           step.block_size * step.head_dim + kPadding;
}

template <class Isa>
struct Room {
    const Step& step;
    const Task& task;
    size_t rows, tiles;
    float *queries, *scores, *chunk, *sum, *numbers;

    Room(const Step& step, const Task& task, float* room) : step(step), task(task) {
        rows = (task.last - task.first) * step.group();
        tiles = (rows + kRows - 1) / kRows;
        queries = room;
        scores = queries + rows * step.head_dim;
        chunk = scores + rows * kChunk;
        sum = chunk + rows * step.partial_width();
        numbers = sum + rows * step.partial_width();
    }

    size_t tile(size_t index) const { return rows * index / tiles; }
    // A row of q, before rotary, and what it is multiplied with.
    const float* query(size_t row) const {
        const size_t group = step.group(), at = task.first + row / group;
        return step.q + (task.row * step.length + at) * step.q_width +
               (task.kv_head * group + row % group) * step.head_dim;
    }
    float query_scale() const {
        return step.k_scale ? step.scale * step.k_scale[task.kv_head] : step.scale;
    }
    size_t position(size_t row) const {
        return static_cast<size_t>(step.past_lengths[task.row]) + task.first + row / step.group();
    }
    Range visible(size_t row) const {
        const size_t end = position(row) + 1;
        return {step.window && end > step.window ? end - step.window : 0, end};
    }
    // The keys that any of the rows sees.
    Range visible(size_t row, size_t end) const {
        return {visible(row).first, visible(end - 1).last};
    }
};

template <class Isa>
void prepare_queries(const Room<Isa>& room) {
    const Step& step = room.step;
    const float scale = room.query_scale();
    float turned[kRows][kLargestHead];
    for (size_t tile = 0; tile < room.tiles; ++tile) {
        const size_t begin = room.tile(tile), count = room.tile(tile + 1) - begin;
        for (size_t r = 0; r < count; ++r) {
            const size_t row = begin + r;
            rotate(step, room.query(row), room.position(row), turned[r]);
        }
        with_rows(count, [&]<size_t R>(Rows<R>) {
            float* packed = room.queries + begin * step.head_dim;
            for (size_t d = 0; d < step.head_dim; ++d)
                for (size_t r = 0; r < R; ++r) *packed++ = turned[r][d] * scale;
        });
    }
}

// Calls f(its first key, in the chunk; the block) for each block of a chunk that any row reads.
template <class Isa, class T, class F>
void for_each_block(const Room<Isa>& room, const void* cache, size_t chunk, const F& f) {
    const Step& step = room.step;
    const Range seen = room.visible(0, room.rows);
    const Range all = seen.within(chunk * kChunk, (chunk + 1) * kChunk);
    const size_t size = step.block_size, count = size * step.head_dim;
    const auto stored = [&](size_t key) {
        return static_cast<const T*>(cache) +
               place(step, room.task.row, room.task.kv_head, key).block;
    };
    for (size_t from = all.first / size * size; from < all.last; from += size) {
        const size_t begin = from - chunk * kChunk;
        const T* at = stored(from);
        if (room.tiles == 1) {
            f(begin, Block<T>{at, from + size < seen.last ? stored(from + size) : at});
        } else if constexpr (std::is_same_v<T, float>) {
            f(begin, Block<T>{at, at});
        } else {  // converted once for all tiles
            for (size_t i = 0; i < count; i += Isa::kLanes)
                store<Isa>(room.numbers + i, load<Isa>(at + i));
            f(begin, Block<float>{room.numbers, room.numbers});
        }
    }
}

template <class Isa, class T>
void score_chunk(const Room<Isa>& room, size_t chunk) {
    const Step& step = room.step;
    for_each_block<Isa, T>(room, step.k_cache, chunk, [&](size_t begin, auto keys) {
        const size_t start = chunk * kChunk + begin;
        for (size_t tile = 0; tile < room.tiles; ++tile) {
            const size_t row = room.tile(tile), end = room.tile(tile + 1);
            const Range seen = room.visible(row, end).within(start, start + step.block_size);
            if (seen.empty()) continue;
            score_block<Isa>(step, end - row, room.queries + row * step.head_dim, keys,
                             seen.first - start, seen.last - start,
                             room.scores + row * kChunk + begin);
        }
    });
}

// Scores of a row become weights; its maximum and its sum are noted.
template <class Isa>
void soften(const Step& step, float* scores, Range seen, const Partial& result) {
    using Vec = VecOf<Isa>;
    constexpr size_t parts = kLanesOfSums / Isa::kLanes;
    const float lowest = -std::numeric_limits<float>::infinity();
    const size_t first = seen.first / kLanesOfSums * kLanesOfSums;
    const size_t last = (seen.last + kLanesOfSums - 1) / kLanesOfSums * kLanesOfSums;
    if (step.softcap != 0)
        for (size_t key = first; key < last; key += Isa::kLanes)
            store<Isa>(scores + key,
                       step.softcap * tanh<Isa>(load<Isa>(scores + key) / step.softcap));
    for (size_t key = first; key < seen.first; ++key) scores[key] = lowest;
    for (size_t key = seen.last; key < last; ++key) scores[key] = lowest;
    Vec top = splat<Isa>(lowest);
    for (size_t key = first; key < last; key += Isa::kLanes) {
        const Vec score = load<Isa>(scores + key);
        top = score > top ? score : top;
    }
    float maximum = top[0];
    for (size_t lane = 1; lane < Isa::kLanes; ++lane) maximum = std::max(maximum, top[lane]);
    Vec sums[parts] = {};
    for (size_t key = first; key < last; key += kLanesOfSums)
        unroll<parts>([&](auto part) {
            float* at = scores + key + part * Isa::kLanes;
            const Vec weight = exp_of_negative<Isa>(load<Isa>(at) - maximum);
            store<Isa>(at, weight);
            sums[part] += weight;
        });
    float lanes[kLanesOfSums];
    std::memcpy(lanes, sums, sizeof(lanes));
    for (size_t half = kLanesOfSums / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    result.maximum() = maximum;
    result.sum() = lanes[0];
}

template <class Isa>
void soften_chunk(const Room<Isa>& room, size_t chunk) {
    const size_t start = chunk * kChunk, width = room.step.partial_width();
    for (size_t row = 0; row < room.rows; ++row) {
        const Partial result{room.chunk + row * width};
        std::fill_n(result.at, width, 0.0f);
        result.maximum() = -std::numeric_limits<float>::infinity();
        const Range seen = room.visible(row).within(start, start + kChunk);
        if (!seen.empty())
            soften<Isa>(room.step, room.scores + row * kChunk,
                        {seen.first - start, seen.last - start}, result);
    }
}

// Weighted values of one block: what all rows of a tile see together, the rest row by row.
template <class Isa, class T>
void weigh_tile_rows(const Room<Isa>& room, size_t tile, size_t start, size_t begin,
                     Block<T> values) {
    const Step& step = room.step;
    const size_t row = room.tile(tile), end = room.tile(tile + 1), stop = start + step.block_size;
    const size_t width = step.partial_width();
    Range shared{room.visible(end - 1).first, room.visible(row).last};
    shared = shared.within(start, stop);
    const auto add = [&](size_t at, size_t rows, Range keys) {
        if (keys.empty()) return;
        weigh<Isa>(step, rows, room.scores + at * kChunk + begin + (keys.first - start),
                   values.from((keys.first - start) * step.head_dim), keys.count(),
                   Partial{room.chunk + at * width}.values(), width);
    };
    const auto apart = [&](size_t from, size_t to) {
        for (size_t at = row; from < to && at < end; ++at)
            add(at, 1, room.visible(at).within(from, to));
    };
    if (shared.empty()) return apart(start, stop);
    apart(start, shared.first);
    add(row, end - row, shared);
    apart(shared.last, stop);
}

template <class Isa, class T>
void weigh_chunk(const Room<Isa>& room, size_t chunk) {
    for_each_block<Isa, T>(room, room.step.v_cache, chunk, [&](size_t begin, auto values) {
        const size_t start = chunk * kChunk + begin;
        for (size_t tile = 0; tile < room.tiles; ++tile)
            weigh_tile_rows<Isa>(room, tile, start, begin, values);
    });
}

// Puts a later chunk's result to that of the chunks before it.
template <class Isa>
void join(const Step& step, const Partial& sum, const Partial& chunk) {
    const float lowest = -std::numeric_limits<float>::infinity();
    if (chunk.maximum() == lowest) return;
    if (sum.maximum() == lowest) {
        std::memcpy(sum.at, chunk.at, step.partial_width() * sizeof(float));
        return;
    }
    const float top = std::max(sum.maximum(), chunk.maximum());
    const float before = exp_of_negative<Isa>(sum.maximum() - top);
    const float after = exp_of_negative<Isa>(chunk.maximum() - top);
    sum.maximum() = top;
    sum.sum() = sum.sum() * before + chunk.sum() * after;
    for (size_t d = 0; d < step.padded(); d += Isa::kLanes) {
        const VecOf<Isa> earlier = load<Isa>(sum.values() + d) * before;
        const VecOf<Isa> later = load<Isa>(chunk.values() + d);
        store<Isa>(sum.values() + d, Isa::fma(later, splat<Isa>(after), earlier));
    }
}

template <class Isa>
void join_all(const Room<Isa>& room, float* sum, float* chunk) {
    const size_t width = room.step.partial_width();
    for (size_t row = 0; row < room.rows; ++row)
        join<Isa>(room.step, {sum + row * width}, {chunk + row * width});
}

// The row's output: its weighted values over the sum of the weights, the sink's among them.
template <class Isa>
void finish(const Room<Isa>& room, size_t row, const Partial& found) {
    const Step& step = room.step;
    const size_t group = step.group(), head = room.task.kv_head * group + row % group;
    float sum = found.sum(), factor = 1;
    if (step.sinks) {
        const float top = std::max(found.maximum(), step.sinks[head]);
        factor = exp_of_negative<Isa>(found.maximum() - top);
        sum = sum * factor + exp_of_negative<Isa>(step.sinks[head] - top);
    }
    if (step.v_scale) factor *= step.v_scale[room.task.kv_head];
    const size_t at = room.task.first + row / group;
    const float* values = found.values();
    float* __restrict out =
        step.out + ((room.task.row * step.length + at) * step.heads + head) * step.head_dim;
    for (size_t d = 0; d < step.head_dim; ++d) out[d] = values[d] * factor / sum;
}

template <class Isa>
void finish_all(const Room<Isa>& room, float* sum) {
    for (size_t row = 0; row < room.rows; ++row)
        finish<Isa>(room, row, {sum + row * room.step.partial_width()});
}

// Calls f with each chunk of the task in turn, and puts their results together.
template <class Isa, class F>
void for_each_chunk(Room<Isa>& room, const F& f) {
    const Task& task = room.task;
    for (size_t chunk = task.first_chunk; chunk < task.last_chunk; ++chunk) {
        const size_t at = chunk - task.first_chunk;
        if (task.partials) room.chunk = task.partials + at * room.rows * room.step.partial_width();
        f(chunk);
        if (task.partials) continue;
        if (at == 0)
            std::swap(room.sum, room.chunk);
        else
            join_all<Isa>(room, room.sum, room.chunk);
    }
    if (!task.partials) finish_all<Isa>(room, room.sum);
}

template <class Isa, class T>
void attend(const Step& step, const Task& task, float* memory) {
    if (task.writes) write<Isa, T>(step, task.row, task.kv_head, task.first, task.last);
    Room<Isa> room(step, task, memory);
    prepare_queries<Isa>(room);
    for_each_chunk(room, [&](size_t chunk) {
        score_chunk<Isa, T>(room, chunk);
        soften_chunk<Isa>(room, chunk);
        weigh_chunk<Isa, T>(room, chunk);
    });
}

template <class Isa>
void merge(const Step& step, const Task& task, float* memory) {
    const Room<Isa> room(step, task, memory);
    const size_t partial = room.rows * step.partial_width();
    for (size_t at = 1; at < task.last_chunk - task.first_chunk; ++at)
        join_all<Isa>(room, task.partials, task.partials + at * partial);
    finish_all<Isa>(room, task.partials);
}

template <class Isa, class T>
constexpr Kernels kernels_of() {
    return {Isa::kName, write<Isa, T>, attend<Isa, T>, merge<Isa>, room_of, kTaskRows};
}

template <class Isa>
constexpr KernelSet kernel_set() {
    return {kernels_of<Isa, float>(), kernels_of<Isa, Half>(), kernels_of<Isa, int8_t>()};
}

}  // namespace
}  // namespace enginewright::attention
