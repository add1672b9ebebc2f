// What embed.py writes of one engine's kernels: the code, how it is launched, and what launches are
// planned by. launch.py, config.py and kernel_set.py say what each of it means.
#pragma once

#include <cstddef>
#include <cstdint>

namespace enginewright::attention {

enum KernelName : int { kCacheWrite, kDecode, kReduce, kPrefill, kKernelNames };

enum ArgumentName : int {
    kQ,
    kK,
    kV,
    kKCache,
    kVCache,
    kBlockTable,
    kPastLengths,
    kNewLengths,
    kCos,
    kSin,
    kSinks,
    kKScale,
    kVScale,
    kOut,
    kWorkspace,
    kTokens,
    kBlocks,
    kSplits,
    kWindow,
    kScoreScale,
    kCap,
    kArgumentNames
};
constexpr int kPointers = kTokens;  // pointers stand first
constexpr int kMostArguments = kArgumentNames;

enum class Io : int { kFloat16, kBfloat16 };
enum class Cache : int { kSame, kInt8, kFp8 };

struct Config {
    Io io;
    int32_t num_heads, kv_heads, head_dim, block_size;
    Cache cache;
    int32_t rotary_dim;
    bool interleaved, has_sinks, has_softcap;

    bool operator==(const Config&) const = default;
    bool quantized() const { return cache != Cache::kSame; }
    int32_t group() const { return num_heads / kv_heads; }
};

struct ArgumentList {
    int count;
    ArgumentName names[kMostArguments];
};

struct Limits {
    int64_t decode_programs, min_split_tokens, max_splits;
    int32_t no_window;
    uintptr_t alignment;
    double log2e;
};

// One cubin. rows: of its tile; capability: as in "8.6".
struct Entry {
    Config config;
    KernelName kernel;
    const char* capability;
    const char* symbol;
    uint32_t num_warps, shared_bytes, hidden_pointers;
    int32_t rows;
    const void* code;
    size_t code_bytes;
};

extern const int32_t kAbiVersion;
extern const Limits kLimits;
extern const ArgumentList kArguments[kKernelNames];
extern const Entry kEntries[];
extern const size_t kEntryCount;

}  // namespace enginewright::attention
