// The launches of one node from shapes alone, as launch.py plans them.
//
// Grids and arguments are those of launch.py's tables; what may change there (the order of
// arguments, tiles, limits) comes from the generated table.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "table.h"

namespace enginewright::attention {

struct Shape {
    int64_t batch, tokens, blocks;
};

struct Scalars {
    float scale;
    int32_t window;
    float softcap;
};

using Pointers = std::array<const void*, kPointers>;

// The kernels of one config and capability.
using KernelEntries = std::array<const Entry*, kKernelNames>;

enum class Kind { kPointer, kInt32, kFloat32 };

struct Argument {
    Kind kind;
    union {
        const void* pointer;
        int32_t integer;
        float real;
    };
};

struct Launch {
    const Entry* entry;
    std::array<uint32_t, 3> grid;
    std::vector<Argument> arguments;
};

inline int64_t tiles(int64_t size, int64_t per_tile) { return (size + per_tile - 1) / per_tile; }

inline int64_t split_count(const Config& config, int64_t batch, int64_t blocks) {
    const int64_t wanted = kLimits.decode_programs / (batch * config.kv_heads);
    const int64_t possible = tiles(blocks * config.block_size, kLimits.min_split_tokens);
    return std::max<int64_t>(1, std::min({wanted, possible, kLimits.max_splits}));
}

inline size_t workspace_bytes(const Config& config, int64_t max_batch) {
    const int64_t unbounded = kLimits.max_splits * kLimits.min_split_tokens;
    int64_t rows = 0;
    for (int64_t batch = 1; batch <= max_batch; ++batch)
        rows = std::max(rows, batch * split_count(config, batch, unbounded));
    return static_cast<size_t>(rows) * config.num_heads * (config.head_dim + 1) * sizeof(float);
}

// Throws std::invalid_argument for a pointer that is missing or not aligned.
inline void check_pointers(const Config& config, bool partial, const Pointers& pointers) {
    for (int name = 0; name < kPointers; ++name) {
        const bool unused = (name == kWorkspace && !partial) ||
                            ((name == kCos || name == kSin) && !config.rotary_dim) ||
                            (name == kSinks && !config.has_sinks) ||
                            ((name == kKScale || name == kVScale) && !config.quantized());
        if (!pointers[name] && !unused)
            throw std::invalid_argument("no pointer for argument " + std::to_string(name));
        if (reinterpret_cast<uintptr_t>(pointers[name]) % kLimits.alignment)
            throw std::invalid_argument("the pointer for argument " + std::to_string(name) +
                                        " is not aligned to " + std::to_string(kLimits.alignment) +
                                        " bytes");
    }
}

// Every argument that a kernel may have, by its name.
inline std::array<Argument, kArgumentNames> argument_values(const Config& config,
                                                            const Shape& shape,
                                                            const Scalars& scalars, int64_t splits,
                                                            const Pointers& pointers) {
    std::array<Argument, kArgumentNames> values{};
    const auto integer = [&](ArgumentName name, int64_t value) {
        values[name].kind = Kind::kInt32;
        values[name].integer = static_cast<int32_t>(value);
    };
    const auto real = [&](ArgumentName name, double value) {
        values[name].kind = Kind::kFloat32;
        values[name].real = static_cast<float>(value);
    };
    for (int name = 0; name < kPointers; ++name) {
        values[name].kind = Kind::kPointer;
        values[name].pointer = pointers[name];
    }
    integer(kTokens, shape.tokens);
    integer(kBlocks, shape.blocks);
    integer(kSplits, splits);
    integer(kWindow, scalars.window ? scalars.window : kLimits.no_window);
    const double scale = scalars.scale * kLimits.log2e, cap = scalars.softcap;
    real(kScoreScale, config.has_softcap ? 2 * scale / cap : scale);
    real(kCap, config.has_softcap ? cap * kLimits.log2e : 0.0);
    return values;
}

// What runs one node, in order. Throws std::invalid_argument for an empty shape and for a pointer
// that is missing or not aligned.
inline std::vector<Launch> launches(const KernelEntries& kernels, const Shape& shape,
                                    const Scalars& scalars, const Pointers& pointers) {
    if (std::min({shape.batch, shape.tokens, shape.blocks}) < 1)
        throw std::invalid_argument("an input has no rows, no tokens or no blocks");
    const Config& config = kernels[kCacheWrite]->config;
    const int64_t splits = split_count(config, shape.batch, shape.blocks);
    const bool partial = shape.tokens == 1 && splits > 1;
    check_pointers(config, partial, pointers);
    const auto values = argument_values(config, shape, scalars, splits, pointers);

    std::vector<Launch> planned;
    const auto launch = [&](KernelName kernel, int64_t x, int64_t y) {
        const auto grid = {x, y, shape.batch};
        Launch made{kernels[kernel], {}, {}};
        std::transform(grid.begin(), grid.end(), made.grid.begin(),
                       [](int64_t size) { return static_cast<uint32_t>(size); });
        const ArgumentList& list = kArguments[kernel];
        for (int at = 0; at < list.count; ++at) made.arguments.push_back(values[list.names[at]]);
        planned.push_back(std::move(made));
    };
    launch(kCacheWrite, tiles(shape.tokens * config.kv_heads, kernels[kCacheWrite]->rows), 1);
    if (shape.tokens > 1) {
        launch(kPrefill, tiles(shape.tokens * config.group(), kernels[kPrefill]->rows),
               config.kv_heads);
        return planned;
    }
    launch(kDecode, splits, config.kv_heads * tiles(config.group(), kernels[kDecode]->rows));
    if (partial) launch(kReduce, config.num_heads, 1);
    return planned;
}

}  // namespace enginewright::attention
