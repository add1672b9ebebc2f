// The kernels for x86-64 with AMX, over a cache of float16: both products of attention in tiles of
// bfloat16 (round.h).
//
// | room of a task | shape                      | meaning                                         |
// |----------------|----------------------------|-------------------------------------------------|
// | queries        | [R', D']                   | rotated, times scale, as left rows              |
// | scores         | [32, chunk]                | of some rows; then weights as left rows         |
// | chunk, sum     | [R', ...]                  | as in attend.h                                  |
// | keys, values   | [chunk / 32, D' / 32, ...] | right, of a chunk                               |
//
// R' and D': rounded up to whole tiles. Rows beyond R hold anything, and so do their results. Some
// rows of queries, 32 of them, meet a whole chunk before the next do.

#include "attend.h"
#include "round.h"

namespace enginewright::attention {
namespace {

constexpr size_t kTaskRowsInTiles = 192;
constexpr size_t kPairRows = 2 * kSide;

size_t up(size_t value, size_t to) { return (value + to - 1) / to * to; }

size_t depth_of(const Step& step) { return up(step.head_dim, kStep); }
// Bytes of the keys of a chunk, and as many of the values.
size_t right_bytes(const Step& step) {
    return kChunk / kStep * (depth_of(step) / kStep) * kRightBytes;
}

size_t room_in_tiles(const Step& step, size_t positions) {
    const size_t rows = up(positions * step.group(), kSide);
    return rows * (depth_of(step) + 2 * step.partial_width()) + kPairRows * kChunk +
           2 * right_bytes(step) / sizeof(float) + kSide;
}

struct TileRoom : Room<Avx512> {
    size_t depth;
    uint8_t *keys, *values;

    TileRoom(const Step& step, const Task& task, float* room)
        : Room<Avx512>(step, task, room), depth(depth_of(step)) {
        const size_t all = up(rows, kSide);
        keys = reinterpret_cast<uint8_t*>(up(reinterpret_cast<size_t>(room), 64));
        values = keys + right_bytes(step);
        scores = reinterpret_cast<float*>(values + right_bytes(step));
        queries = scores + kPairRows * kChunk;
        chunk = queries + all * depth;
        sum = chunk + all * step.partial_width();
        numbers = nullptr;
    }

    // One pair meets what is right as it is made, so that it need not be kept.
    bool kept() const { return rows > kPairRows; }
    uint8_t* right(uint8_t* of, size_t key, size_t d) const {
        const size_t place = kept() ? key : key % (2 * kStep);
        return of + (place * depth / kStep + d) / kStep * kRightBytes;
    }
};

// Some rows of queries, and the keys of a chunk that any of them sees, in whole steps.
struct Pair {
    size_t row, end;
    size_t start;  // of the chunk
    Range keys;

    Pair(const TileRoom& room, size_t row, size_t chunk)
        : row(row), end(std::min(room.rows, row + kPairRows)), start(chunk * kChunk) {
        const Range seen = room.visible(row, end).within(start, start + kChunk);
        keys = seen.empty()
                   ? Range{0, 0}
                   : Range{(seen.first - start) / kStep * kStep, up(seen.last - start, kStep)};
    }
    bool two() const { return row + kSide < end; }
    // Columns that are multiplied at a time.
    size_t columns() const { return two() ? kStep : 2 * kStep; }
};

Tiles tiles_for(size_t rows) {
    const size_t left = std::min(rows, kSide);
    return {{left, 64}, {left, 64}, {kSide, 64}};
}

void round_queries(const TileRoom& room) {
    const Step& step = room.step;
    const float scale = room.query_scale();
    for (size_t row = 0; row < room.rows; ++row) {
        float* query = room.queries + row * room.depth;
        rotate(step, room.query(row), room.position(row), query);
        for (size_t d = 0; d < step.head_dim; ++d) query[d] *= scale;
        std::fill(query + step.head_dim, query + room.depth, 0.0f);
        for (size_t d = 0; d < room.depth; d += kStep)
            round_left(_mm512_loadu_ps(query + d), _mm512_loadu_ps(query + d + kSide), query + d);
    }
}

// A chunk as far as any row sees it: the numbers of its keys, and where they are in the cache, every
// 32 of them; of the next chunk as well, to be fetched.
struct Chunk {
    Range seen;
    const Half *keys[kChunk / kStep], *values[kChunk / kStep], *later[kChunk / kStep];

    Chunk(const TileRoom& room, size_t index) {
        const Step& step = room.step;
        const size_t start = index * kChunk;
        const Range all = room.visible(0, room.rows), here = all.within(start, start + kChunk);
        const auto stored = [&](const void* cache, size_t key, size_t width) {
            const Place at = place(step, room.task.row, room.task.kv_head, start + key);
            return static_cast<const Half*>(cache) + at.block + at.offset * width;
        };
        seen = here.empty() ? Range{0, 0} : Range{here.first - start, here.last - start};
        for (size_t key = first(); key < seen.last; key += kStep) {
            const size_t next = start + key + kChunk < all.last ? key + kChunk : key;
            keys[key / kStep] = stored(step.k_cache, key, 1);
            values[key / kStep] = stored(step.v_cache, key, step.head_dim);
            later[key / kStep] = stored(step.k_cache, next, 1);
        }
    }

    size_t first() const { return seen.first / kStep * kStep; }
};

// 32 of a chunk's keys, by 32 of their numbers; as many values are fetched.
const uint8_t* round_keys(const TileRoom& room, const Chunk& chunk, size_t key, size_t d) {
    const size_t size = room.step.block_size, head_dim = room.step.head_dim;
    uint8_t* to = room.right(room.keys, key, d);
    round_right({chunk.keys[key / kStep] + d * size, size}, 0, std::min(kStep, head_dim - d), kStep,
                {chunk.values[key / kStep] + d, head_dim}, to);
    return to;
}

// 32 of its values, by 32 of their numbers; as many keys of the next chunk are fetched.
const uint8_t* round_values(const TileRoom& room, const Chunk& chunk, size_t key, size_t d) {
    const size_t size = room.step.block_size, head_dim = room.step.head_dim;
    const Range here = chunk.seen.within(key, key + kStep);
    uint8_t* to = room.right(room.values, key, d);
    round_right({chunk.values[key / kStep] + d, head_dim}, here.first - key, here.last - key,
                std::min(kStep, head_dim - d), {chunk.later[key / kStep] + d * size, size}, to);
    return to;
}

void round_chunk(const TileRoom& room, const Chunk& chunk) {
    for (const auto round : {round_keys, round_values})
        for (size_t key = chunk.first(); key < chunk.seen.last; key += kStep)
            for (size_t d = 0; d < room.depth; d += kStep) round(room, chunk, key, d);
}

void score_pair(const TileRoom& room, const Chunk& chunk, const Pair& pair) {
    const size_t depth = room.depth, bytes = kChunk * sizeof(float);
    const auto right = [&](size_t key, size_t d) {
        return room.kept() ? room.right(room.keys, key, d) : round_keys(room, chunk, key, d);
    };
    for (size_t key = pair.keys.first; key < pair.keys.last; key += pair.columns()) {
        const bool wide = !pair.two() && key + kStep < pair.keys.last;
        zero_sums();
        for (size_t d = 0; d < depth; d += kStep)
            multiply_step({room.queries + pair.row * depth + d, depth, pair.two()}, right(key, d),
                          wide ? right(key + kStep, d) : nullptr);
        float* scores = room.scores + key;
        _tile_stored(0, scores, bytes);
        _tile_stored(2, scores + kSide, bytes);
        if (!pair.two() && !wide) continue;
        scores += pair.two() ? kSide * kChunk : kStep;
        _tile_stored(1, scores, bytes);
        _tile_stored(3, scores + kSide, bytes);
    }
}

// The scores of 16 keys, from one on; -inf for those that the row does not see. Plain: it sees all
// of the steps, and there is no cap.
template <bool Plain>
VecOf<Avx512> seen_scores(const Step& step, const float* scores, size_t key, Range seen) {
    VecOf<Avx512> found = load<Avx512>(scores + key) * kOfProducts;
    if constexpr (Plain) return found;
    const auto until = [&](size_t end) {
        return end <= key ? 0u : end >= key + kSide ? 0xffffu : (1u << (end - key)) - 1;
    };
    const auto there = static_cast<__mmask16>(until(seen.last) & ~until(seen.first));
    if (step.softcap != 0) found = step.softcap * tanh<Avx512>(found / step.softcap);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()), there,
                              found);
}

// Scores of a row become weights, as left rows; its maximum and its sum are noted.
template <bool Plain>
void soften_row(const Step& step, float* scores, Range steps, Range seen, const Partial& result) {
    VecOf<Avx512> tops[2], sums[2] = {};
    tops[0] = tops[1] = splat<Avx512>(-std::numeric_limits<float>::infinity());
    for (size_t key = steps.first; key < steps.last; key += kStep)
        unroll<2>([&](auto half) {
            const auto score = seen_scores<Plain>(step, scores, key + half * kSide, seen);
            if constexpr (!Plain) store<Avx512>(scores + key + half * kSide, score);
            tops[half] = _mm512_max_ps(tops[half], score);
        });
    const float maximum = _mm512_reduce_max_ps(_mm512_max_ps(tops[0], tops[1]));
    for (size_t key = steps.first; key < steps.last; key += kStep) {
        VecOf<Avx512> weights[2];
        unroll<2>([&](auto half) {
            VecOf<Avx512> score = load<Avx512>(scores + key + half * kSide);
            if constexpr (Plain) score *= kOfProducts;
            weights[half] = exp_of_negative<Avx512>(score - maximum);
            sums[half] += weights[half];
        });
        round_left(weights[0], weights[1], scores + key);
    }
    result.maximum() = maximum;
    result.sum() = _mm512_reduce_add_ps(sums[0] + sums[1]);
}

void soften_pair(const TileRoom& room, const Pair& pair) {
    for (size_t row = pair.row; row < pair.end; ++row) {
        const Partial result{room.chunk + row * room.step.partial_width()};
        result.maximum() = -std::numeric_limits<float>::infinity();
        result.sum() = 0;
        const Range seen = room.visible(row).within(pair.start, pair.start + kChunk);
        const Range here{seen.first - pair.start, seen.last - pair.start};
        float* scores = room.scores + (row - pair.row) * kChunk;
        if (seen.empty())
            std::fill(scores + pair.keys.first, scores + pair.keys.last, 0.0f);
        else if (here.count() == pair.keys.count() && room.step.softcap == 0)
            soften_row<true>(room.step, scores, pair.keys, here, result);
        else
            soften_row<false>(room.step, scores, pair.keys, here, result);
    }
}

void store_sum(size_t sum, float* to) {
    switch (sum) {
        case 0:
            _tile_stored(0, to, 64);
            break;
        case 1:
            _tile_stored(1, to, 64);
            break;
        case 2:
            _tile_stored(2, to, 64);
            break;
        default:
            _tile_stored(3, to, 64);
    }
}

// The sums of a pair, to its values from d on.
void store_values(const TileRoom& room, const Pair& pair, size_t d) {
    const size_t width = room.step.partial_width();
    alignas(64) float whole[kSide * kSide];
    for (size_t sum = 0; sum < 4; ++sum) {
        const size_t row = pair.row + (pair.two() ? sum % 2 * kSide : 0);
        const size_t column = d + sum / 2 * kSide + (pair.two() ? 0 : sum % 2 * kStep);
        if (column >= room.step.padded()) continue;
        float* to = room.chunk + row * width + kPadding + column;
        store_sum(sum, whole);
        for (size_t r = 0; r < std::min(kSide, pair.end - row); ++r)
            store<Avx512>(to + r * width, load<Avx512>(whole + r * kSide) * kOfProducts);
    }
}

void weigh_pair(const TileRoom& room, const Chunk& chunk, const Pair& pair) {
    const auto right = [&](size_t key, size_t d) {
        return room.kept() ? room.right(room.values, key, d) : round_values(room, chunk, key, d);
    };
    for (size_t d = 0; d < room.depth; d += pair.columns()) {
        const bool wide = !pair.two() && d + kStep < room.depth;
        zero_sums();
        for (size_t key = pair.keys.first; key < pair.keys.last; key += kStep)
            multiply_step({room.scores + key, kChunk, pair.two()}, right(key, d),
                          wide ? right(key, d + kStep) : nullptr);
        store_values(room, pair, d);
    }
}

void attend_in_tiles(const Step& step, const Task& task, float* memory) {
    if (task.writes) write<Avx512, Half>(step, task.row, task.kv_head, task.first, task.last);
    TileRoom room(step, task, memory);
    round_queries(room);
    const Tiles tiles = tiles_for(room.rows);
    for_each_chunk(room, [&](size_t index) {
        const Chunk chunk(room, index);
        if (room.kept()) round_chunk(room, chunk);
        for (size_t row = 0; row < room.rows; row += kPairRows) {
            const Pair pair(room, row, index);
            score_pair(room, chunk, pair);
            soften_pair(room, pair);
            weigh_pair(room, chunk, pair);
        }
    });
}

}  // namespace

extern const Kernels kAmx = {"amx",         write<Avx512, Half>, attend_in_tiles,
                             merge<Avx512>, room_in_tiles,       kTaskRowsInTiles};

}  // namespace enginewright::attention
