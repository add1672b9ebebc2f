// The operator CachedAttention for ONNX Runtime: reads and checks its tensors, shares the tasks of
// a step out to the session's threads, and leaves the arithmetic to the kernels of the processor.

#include <algorithm>
#include <atomic>
#include <thread>

#include "operators.h"
#include "plan.h"

namespace enginewright::attention {
namespace {

enum Input : size_t {
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
    kInputs
};
enum Output : size_t { kOut, kKCacheOut, kVCacheOut, kOutputs };

constexpr int64_t kLargestSize = 1 << 20;
// Multiplications below which sharing them out takes longer than they do.
constexpr size_t kSmallWork = 1 << 17;
constexpr size_t kTasksOfThread = 4;

const KernelSet& kernel_set(InstructionSet best) {
#if defined(__x86_64__)
    if (best >= InstructionSet::kAvx512) return kAvx512;
    if (best >= InstructionSet::kAvx2) return kAvx2;
#endif
    return kPortable;
}

const Kernels& kernels_for(InstructionSet best, ort::ElementType type, bool bfloat16) {
#if defined(__x86_64__)
    if (bfloat16 && type == ort::kFloat16 && best >= InstructionSet::kAmx) return kAmx;
#endif
    const KernelSet& set = kernel_set(best);
    if (type == ort::kFloat) return set.float32;
    return type == ort::kFloat16 ? set.float16 : set.int8;
}

size_t bytes_of(ort::ElementType type) {
    if (type == ort::kFloat) return 4;
    return type == ort::kFloat16 ? 2 : 1;
}

size_t wanted_tasks() {
    static const size_t count = std::max(1u, std::thread::hardware_concurrency()) * kTasksOfThread;
    return count;
}

// A step's tasks, as the session's threads call them.
struct Run {
    const Step& step;
    const Kernels& kernels;
    const Plan& plan;
    size_t room;
    mutable std::atomic<bool> out_of_memory = false;

    // Memory that each thread keeps for its next task; null where there is none.
    float* memory() const {
        thread_local std::vector<float> kept;
        try {  // an exception must not leave a session's thread
            if (kept.size() < room) kept.resize(room);
            return kept.data();
        } catch (const std::bad_alloc&) {
            out_of_memory = true;
            return nullptr;
        }
    }

    static void write(void* self, size_t index) {
        const auto& run = *static_cast<const Run*>(self);
        const Task& task = run.plan.writes[index];
        run.kernels.write(run.step, task.row, task.kv_head, task.first, task.last);
    }
    static void attend(void* self, size_t index) {
        const auto& run = *static_cast<const Run*>(self);
        if (float* memory = run.memory())
            run.kernels.attend(run.step, run.plan.tasks[index], memory);
    }
    static void merge(void* self, size_t index) {
        const auto& run = *static_cast<const Run*>(self);
        if (float* memory = run.memory())
            run.kernels.merge(run.step, run.plan.merges[index], memory);
    }
};

// What a node says; see contract.py.
struct Attributes {
    int64_t num_heads = 0, kv_heads = 0, window = 0, rotary_dim = 0, interleaved = 0;
    int64_t abi_version = 1, bfloat16 = 0;
    float scale = 0, softcap = 0;
};

class Kernel {
  public:
    static constexpr const char* kName = "CachedAttention";

    Kernel(const void* table, const ort::KernelInfo* info, InstructionSet instructions)
        : api_(table), instructions_(instructions) {
        read_attribute(api_, info, "num_heads", &a_.num_heads);
        read_attribute(api_, info, "kv_heads", &a_.kv_heads);
        read_attribute(api_, info, "window", &a_.window);
        read_attribute(api_, info, "rotary_dim", &a_.rotary_dim);
        read_attribute(api_, info, "interleaved", &a_.interleaved);
        read_attribute(api_, info, "abi_version", &a_.abi_version);
        read_attribute(api_, info, "bfloat16", &a_.bfloat16);
        read_attribute(api_, info, "scale", &a_.scale);
        read_attribute(api_, info, "softcap", &a_.softcap);
    }

    ort::Status* check() const {
        if (a_.abi_version != 1) return fail("CachedAttention: abi_version is not 1");
        const bool heads = a_.kv_heads > 0 && a_.num_heads >= a_.kv_heads &&
                           a_.num_heads <= kLargestSize && a_.num_heads % a_.kv_heads == 0;
        const bool rotary = a_.rotary_dim >= 0 && a_.rotary_dim % 2 == 0;
        if (heads && rotary && a_.window >= 0 && a_.softcap >= 0) return nullptr;
        return fail(
            "CachedAttention: num_heads must be a multiple of kv_heads, rotary_dim even, window "
            "and softcap not negative");
    }

    ort::Status* compute(ort::KernelContext* context) const {
        thread_local Tensor in[kInputs];
        for (size_t i = 0; i < kInputs; ++i)
            if (auto* status = read_input(api_, context, i, &in[i])) return status;
        if (auto* message = wrong(in)) return fail(message);
        Step step = step_of(in);
        if (auto* message = wrong_rows(in, step)) return fail(message);
        void* out = nullptr;
        const int64_t width = a_.num_heads * in[kKCache].shape[2];
        const int64_t shape[] = {in[kQ].shape[0], in[kQ].shape[1], width};
        if (auto* status = output(context, kOut, shape, 3, &out)) return status;
        step.out = static_cast<float*>(out);
        if (auto* status = cache(context, kKCacheOut, in[kKCache], &step.k_cache)) return status;
        if (auto* status = cache(context, kVCacheOut, in[kVCache], &step.v_cache)) return status;
        return run(context, step, kernels_for(instructions_, in[kKCache].type, a_.bfloat16 == 1));
    }

    const ort::Api& api() const { return api_; }

  private:
    // Kernels trust what is checked here and in wrong_rows; null: all is well.
    const char* wrong(const Tensor* in) const {
        for (size_t i = 0; i < kCos; ++i)
            if (!in[i] && i != kK && i != kV)
                return "CachedAttention: an input is missing or empty";
        const auto& q = in[kQ].shape;
        const auto& k_cache = in[kKCache].shape;
        if (q.size() != 3 || k_cache.size() != 4 || in[kBlockTable].shape.size() != 2)
            return "CachedAttention: q has 3 axes, a cache 4, block_table 2";
        const int64_t size = k_cache[3], head_dim = k_cache[2], batch = q[0];
        if (head_dim <= 0 || head_dim > static_cast<int64_t>(kLargestHead))
            return "CachedAttention: heads have 1 to 256 dimensions";
        if (size <= 0 || size % kSmallestBlock != 0 || kChunk % static_cast<size_t>(size) != 0)
            return "CachedAttention: blocks have 32, 64, 128 or 256 tokens";
        const std::vector<int64_t> v_cache{k_cache[0], k_cache[1], size, head_dim};
        if (k_cache[1] != a_.kv_heads || in[kVCache].shape != v_cache)
            return "CachedAttention: k_cache is [blocks, kv_heads, D, size], v_cache [blocks, "
                   "kv_heads, size, D]";
        const bool packed = !in[kK] && !in[kV];
        const std::vector<int64_t> keys{batch, q[1], a_.kv_heads * head_dim};
        const int64_t width = (a_.num_heads + (packed ? 2 * a_.kv_heads : 0)) * head_dim;
        if (q[2] != width || (!packed && (in[kK].shape != keys || in[kV].shape != keys)))
            return "CachedAttention: q is [B, S, heads * D], k and v [B, S, kv_heads * D], or q "
                   "all three side by side and the others left out";
        const size_t rows = static_cast<size_t>(batch);
        if (in[kBlockTable].shape[0] != batch || in[kPastLengths].count != rows ||
            in[kNewLengths].count != rows)
            return "CachedAttention: block_table, past_lengths and new_lengths have B rows";
        return wrong_options(in);
    }

    const char* wrong_options(const Tensor* in) const {
        const ort::ElementType type = in[kKCache].type;
        if (type != in[kVCache].type ||
            (type != ort::kFloat && type != ort::kFloat16 && type != ort::kInt8))
            return "CachedAttention: both caches are float32, float16 or int8";
        const bool scaled = in[kKScale] && in[kVScale];
        if (scaled != (type == ort::kInt8) || static_cast<bool>(in[kKScale]) != scaled)
            return "CachedAttention: a cache of int8 has k_scale and v_scale, no other has";
        const size_t heads = static_cast<size_t>(a_.kv_heads);
        if (scaled && (in[kKScale].count != heads || in[kVScale].count != heads))
            return "CachedAttention: k_scale and v_scale have kv_heads numbers";
        if (in[kSinks] && in[kSinks].count != static_cast<size_t>(a_.num_heads))
            return "CachedAttention: sinks has num_heads numbers";
        const bool rotates = static_cast<bool>(in[kCos]);
        if (rotates != static_cast<bool>(in[kSin]) || rotates != (a_.rotary_dim > 0))
            return "CachedAttention: cos and sin come with rotary_dim, and together";
        if (!rotates) return nullptr;
        if (a_.rotary_dim > in[kKCache].shape[2] || in[kCos].shape.size() != 2 ||
            in[kCos].shape[1] != a_.rotary_dim / 2 || in[kSin].shape != in[kCos].shape)
            return "CachedAttention: cos and sin are [positions, rotary_dim / 2], and rotary_dim "
                   "is no larger than a head";
        return nullptr;
    }

    // Lengths and blocks, which differ from step to step.
    const char* wrong_rows(const Tensor* in, const Step& step) const {
        const int64_t blocks = in[kKCache].shape[0];
        const int64_t capacity = static_cast<int64_t>(step.table_width * step.block_size);
        for (size_t row = 0; row < step.batch; ++row) {
            const int64_t past = step.past_lengths[row], count = step.new_lengths[row];
            const int64_t end = past + count;
            if (past < 0 || count < 0 || count > static_cast<int64_t>(step.length))
                return "CachedAttention: past_lengths are 0 or more, new_lengths 0 to S";
            if (end > capacity) return "CachedAttention: a row is longer than its blocks";
            if (in[kCos] && end > in[kCos].shape[0])
                return "CachedAttention: a row is longer than cos and sin";
            const int32_t* table = step.block_table + row * step.table_width;
            for (size_t at = 0; at * step.block_size < static_cast<size_t>(end); ++at)
                if (table[at] < 0 || table[at] >= blocks)
                    return "CachedAttention: block_table names a block that is not there";
        }
        return nullptr;
    }

    Step step_of(const Tensor* in) const {
        const auto size = [](int64_t value) { return static_cast<size_t>(value); };
        const auto& q = in[kQ].shape;
        const auto& k_cache = in[kKCache].shape;
        Step step{};
        step.block_table = in[kBlockTable].as<int32_t>();
        step.past_lengths = in[kPastLengths].as<int32_t>();
        step.new_lengths = in[kNewLengths].as<int32_t>();
        step.cos = in[kCos].as<float>();
        step.sin = in[kSin].as<float>();
        step.sinks = in[kSinks].as<float>();
        step.k_scale = in[kKScale].as<float>();
        step.v_scale = in[kVScale].as<float>();
        step.batch = size(q[0]);
        step.length = size(q[1]);
        step.heads = size(a_.num_heads);
        step.kv_heads = size(a_.kv_heads);
        step.head_dim = size(k_cache[2]);
        step.block_size = size(k_cache[3]);
        step.table_width = size(in[kBlockTable].shape[1]);
        step.rotated = size(a_.rotary_dim) / 2;
        step.window = size(a_.window);
        step.scale = a_.scale;
        step.softcap = a_.softcap;
        step.interleaved = a_.interleaved != 0;
        const size_t keys = step.kv_heads * step.head_dim;
        const bool packed = !in[kK];
        step.q = in[kQ].as<float>();
        step.k = packed ? step.q + step.heads * step.head_dim : in[kK].as<float>();
        step.v = packed ? step.k + keys : in[kV].as<float>();
        step.q_width = size(q[2]);
        step.kv_width = packed ? step.q_width : keys;
        return step;
    }

    ort::Status* run(ort::KernelContext* context, const Step& step, const Kernels& kernels) const {
        thread_local Plan plan;
        plan.make(step, kernels.rows_of_task, wanted_tasks());
        size_t positions = 0;
        for (const Task& task : plan.tasks) positions = std::max(positions, task.last - task.first);
        Run run{step, kernels, plan, kernels.room(step, positions)};
        ort::Status* status = share(context, run, Run::write, plan.writes.size());
        if (!status) status = share(context, run, Run::attend, plan.tasks.size());
        if (!status) status = share(context, run, Run::merge, plan.merges.size());
        return !status && run.out_of_memory ? out_of_memory(api_, kName) : status;
    }

    ort::Status* share(ort::KernelContext* context, Run& run, void (*task)(void*, size_t),
                       size_t count) const {
        if (run.plan.work >= kSmallWork && count > 1)
            return api_.parallel_for(context, task, count, count, &run);
        for (size_t index = 0; index < count; ++index) task(&run, index);
        return nullptr;
    }

    ort::Status* output(ort::KernelContext* context, Output index, const int64_t* shape,
                        size_t rank, void** data) const {
        ort::Value* value = nullptr;
        if (auto* status = api_.output(context, index, shape, rank, &value)) return status;
        return api_.data(value, data);
    }

    // A cache's output, which is the input where the caller bound it so; else a copy that is
    // written in its place.
    ort::Status* cache(ort::KernelContext* context, Output index, const Tensor& in,
                       void** data) const {
        if (auto* status = output(context, index, in.shape.data(), in.shape.size(), data))
            return status;
        if (*data != in.data) std::memcpy(*data, in.data, in.count * bytes_of(in.type));
        return nullptr;
    }

    ort::Status* fail(const char* message) const {
        return api_.create_status(ort::kInvalidArgument, message);
    }

    ort::Api api_;
    InstructionSet instructions_;
    Attributes a_;
};

// One operator for each type of the cache: ONNX Runtime takes the one that fits a node.
struct Typed : Operator {
    ort::ElementType cache;
};

ort::ElementType cache_type(const ort::Operator* op) {
    return static_cast<const Typed*>(op)->cache;
}

ort::ElementType input_type(const ort::Operator* op, size_t index) {
    if (index == kKCache || index == kVCache) return cache_type(op);
    const bool integers = index == kBlockTable || index == kPastLengths || index == kNewLengths;
    return integers ? ort::kInt32 : ort::kFloat;
}

std::shared_ptr<const Operator> describe(InstructionSet instructions, ort::ElementType cache) {
    Typed op{operator_of<Kernel>(instructions), cache};
    op.input_type = input_type;
    op.input_count = [](const ort::Operator*) -> size_t { return kInputs; };
    op.output_type = [](const ort::Operator* op, size_t index) {
        return index == kOut ? ort::kFloat : cache_type(op);
    };
    op.output_count = [](const ort::Operator*) -> size_t { return kOutputs; };
    op.input_characteristic = [](const ort::Operator*, size_t index) {
        return index < kCos && index != kK && index != kV ? ort::kRequired : ort::kOptional;
    };
    return std::make_shared<const Typed>(op);
}

}  // namespace
}  // namespace enginewright::attention

namespace enginewright {

Operators attention_operators(InstructionSet instructions) {
    Operators found;
    for (const ort::ElementType cache : {ort::kFloat, ort::kFloat16, ort::kInt8})
        found.push_back(attention::describe(instructions, cache));
    return found;
}

std::string attention_kernels(InstructionSet instructions) {
    const auto chosen = [=](ort::ElementType cache, bool bfloat16) {
        return std::string(attention::kernels_for(instructions, cache, bfloat16).name);
    };
    return "attention=" + chosen(ort::kFloat, true) +
           " attention_half=" + chosen(ort::kFloat16, false) +
           " attention_half_bfloat16=" + chosen(ort::kFloat16, true) +
           " attention_int8=" + chosen(ort::kInt8, true);
}

}  // namespace enginewright
