// What the kernels of CachedAttention take: a step, cut into tasks, and the room that they work in.
//
// | tensor       | shape                       | type    | meaning                                |
// |--------------|-----------------------------|---------|----------------------------------------|
// | q            | [B, S, heads * D]           | float32 | queries, before rotary with cos        |
// | k, v         | [B, S, kv_heads * D]        | float32 | keys and values of new tokens          |
// | k_cache      | [blocks, kv_heads, D, size] | T       | the pool; keys are read across tokens  |
// | v_cache      | [blocks, kv_heads, size, D] | T       | the pool                               |
// | block_table  | [B, n]                      | int32   | the blocks of each row, in order       |
// | past_lengths | [B]                         | int32   | tokens already in the cache            |
// | new_lengths  | [B]                         | int32   | how many of S are real                 |
// | cos, sin     | [positions, rotary_dim / 2] | float32 | optional                               |
// | sinks        | [heads]                     | float32 | optional                               |
// | k_scale, ... | [kv_heads]                  | float32 | of an int8 cache: value = code * scale |
// | out          | [B, S, heads * D]           | float32 | undefined beyond new_lengths           |
//
// T is float32, float16 or int8. Where the node has no k and v, its q is [B, S, (heads + 2 kv_heads)
// * D], all three side by side: so a row of q, k and v may be wider than what is read of it.
//
// Every query is computed in one order, whatever batch or step it is in. Its keys come in chunks of
// 256 that are cut at absolute positions. Of a chunk: each score is summed over d in order; the
// weights exp(score - maximum) are summed in 16 lanes, by the key's place; the weighted values are
// summed over the keys in order. Chunks are then put together in order. Keys that a query does not
// see are left out. kernels_amx.cpp has an order of its own, which is one as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace enginewright::attention {

constexpr size_t kChunk = 256;
constexpr size_t kLargestHead = 256;
// Blocks are multiples of this and divide a chunk.
constexpr size_t kSmallestBlock = 32;
// Rows of sums are padded to the widest vector.
constexpr size_t kPadding = 16;

struct Step {
    const float *q, *k, *v;
    size_t q_width, kv_width;  // from one position to the next
    float* out;
    void *k_cache, *v_cache;
    const int32_t *block_table, *past_lengths, *new_lengths;
    const float *cos, *sin, *sinks, *k_scale, *v_scale;
    size_t batch, length, heads, kv_heads, head_dim, block_size, table_width;
    size_t rotated;  // pairs of a head that are
    size_t window;   // 0: none
    float scale, softcap;
    bool interleaved;

    size_t group() const { return heads / kv_heads; }
    size_t padded() const { return (head_dim + kPadding - 1) / kPadding * kPadding; }
    // Of a chunk's partial result, for each row of queries: maximum, sum, weighted values.
    size_t partial_width() const { return padded() + kPadding; }
};

// Queries of the new positions [first, last) of a row, for one head of keys, over some chunks.
struct Task {
    size_t row, kv_head, first, last;
    size_t first_chunk, last_chunk;
    bool writes;      // keys and values of these positions, before it reads
    float* partials;  // where the chunks' results go, one after the other; null: they become `out`
};

// The kernels of one instruction set over a cache of one type.
struct Kernels {
    const char* name;
    // Writes keys and values of the new positions [first, last) of a row to the cache.
    void (*write)(const Step&, size_t row, size_t kv_head, size_t first, size_t last);
    void (*attend)(const Step&, const Task&, float* room);
    // Puts the partial results of all the chunks together; the task's are of those all.
    void (*merge)(const Step&, const Task&, float* room);
    // Floats of room that a task of so many positions needs.
    size_t (*room)(const Step&, size_t positions);
    // Rows of queries (positions by heads of a group) that one task takes at a time, if it may choose.
    size_t rows_of_task;
};

struct KernelSet {
    Kernels float32, float16, int8;
};

extern const KernelSet kPortable;
#if defined(__x86_64__)
extern const KernelSet kAvx2;
extern const KernelSet kAvx512;
extern const Kernels kAmx;  // of a cache of float16
#endif

}  // namespace enginewright::attention
