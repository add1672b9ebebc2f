// The operator BlockLinear for ONNX Runtime: reads its tensors, shares the work out to the
// session's threads, and leaves the arithmetic to the kernels of the processor at hand.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "huge_pages.h"
#include "operators.h"
#include "swiglu.h"
#include "tensors.h"

namespace enginewright {
namespace {

enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kOffsets, kBias, kInputs };

constexpr size_t kLargestSize = 1u << 31;

// Tiles of bfloat16 are for 4 bits, and for 8 where that is asked for.
const Kernels& choose_kernels(InstructionSet best, size_t bits, size_t k, bool bfloat16) {
#if defined(__x86_64__)
    if (best == InstructionSet::kAmx && (bits == 4 || bfloat16) && k % 32 == 0) return kAmx;
    if (best >= InstructionSet::kAvx512Vnni) return kAvx512Vnni;
    if (best == InstructionSet::kAvx512) return kAvx512;
    if (best == InstructionSet::kAvx2Vnni) return kAvx2Vnni;
    if (best == InstructionSet::kAvx2) return kAvx2;
#endif
    return kPortable;
}

// Rounded activations, in room that the calling thread keeps for the next product.
struct Room {
    struct alignas(64) Line {
        uint8_t bytes[64];
    };
    std::vector<Line> codes;
    std::vector<float> scales;

    Activations fit(size_t m, const Kernels& kernels, const Weights& w) {
        const size_t at_once = kernels.rows_at_once;
        const size_t bytes = (m + at_once - 1) / at_once * at_once * kernels.bytes_of_row(w);
        codes.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
        scales.resize(m);
        return {codes.data()->bytes, scales.data(), m};
    }
};

// 0 of a type that no input should have.
size_t bytes_of(const Tensor& tensor) {
    if (tensor.type == ort::kUint8) return tensor.count;
    if (tensor.type == ort::kFloat16) return tensor.count * 2;
    return tensor.type == ort::kFloat ? tensor.count * 4 : 0;
}

struct Product {
    const Kernels& kernels;
    InstructionSet instructions;
    const Weights& w;
    const Activations& a;
    const float* x;
    float* y;
    bool gated;
    size_t m, columns;  // rows of x, columns of y a task
    mutable std::atomic<bool> out_of_memory = false;

    size_t rounds() const { return (m + kernels.rows_at_once - 1) / kernels.rows_at_once; }
    size_t row_tasks() const { return (m + kernels.rows_of_task - 1) / kernels.rows_of_task; }
    size_t column_tasks() const { return (width() + columns - 1) / columns; }
    size_t width() const { return gated ? w.n / 2 : w.n; }  // of y

    static void round(void* self, size_t task) {
        const auto& p = *static_cast<const Product*>(self);
        const size_t row = task * p.kernels.rows_at_once;
        p.kernels.round_rows(p.x + row * p.w.k, p.w, p.a, row);
    }
    static void multiply(void* self, size_t task) {
        const auto& p = *static_cast<const Product*>(self);
        const size_t m0 = task / p.column_tasks() * p.kernels.rows_of_task;
        const size_t m1 = std::min(p.m, m0 + p.kernels.rows_of_task);
        const size_t n0 = task % p.column_tasks() * p.columns;
        const size_t n1 = std::min(p.width(), n0 + p.columns);
        try {  // an exception must not leave a session's thread
            if (p.gated)
                p.multiply_gated(m0, m1, n0, n1);
            else
                p.kernels.multiply(p.w, p.a, {p.y, p.w.n}, m0, m1, n0, n1);
        } catch (const std::bad_alloc&) {
            p.out_of_memory = true;
        }
    }

  private:
    // A row's gate and what it lets through lie side by side in the thread's own room.
    void multiply_gated(size_t m0, size_t m1, size_t n0, size_t n1) const {
        thread_local std::vector<float> room;
        const size_t count = n1 - n0, up = width();
        room.resize((m1 - m0) * 2 * count);
        kernels.multiply(w, a, {room.data(), 2 * count, m0, n0}, m0, m1, n0, n1);
        kernels.multiply(w, a, {room.data() + count, 2 * count, m0, up + n0}, m0, m1, up + n0,
                         up + n1);
        for (size_t m = m0; m < m1; ++m)
            swiglu(instructions, room.data() + (m - m0) * 2 * count, count, y + m * width() + n0);
    }
};

class Kernel {
  public:
    static constexpr const char* kName = "BlockLinear";

    // What is missing counts as 0, which check() then refuses (but for zero).
    Kernel(const void* table, const ort::KernelInfo* info, InstructionSet instructions)
        : api_(table), instructions_(instructions) {
        const auto attribute = [&](const char* name) {
            int64_t value = 0;
            read_attribute(api_, info, name, &value);
            return static_cast<size_t>(value);  // a negative one is larger than any that is legal
        };
        n_ = attribute("N");
        k_ = attribute("K");
        bits_ = attribute("bits");
        block_ = attribute("block_size");
        zero_ = attribute("zero");
        bfloat16_ = attribute("bfloat16");
        gated_ = attribute("gated");
        for (size_t i = kCodes; i < kInputs; ++i) {
            constants_[i] = read_constant(api_, info, i);
            kept_[i] = in_huge_pages(constants_[i].data, bytes_of(constants_[i]));
            constants_[i].data = const_cast<void*>(kept_[i].data);
        }
    }

    ort::Status* check() const {
        const bool block =
            block_ >= kGroup && block_ <= 256 && (block_ & (block_ - 1)) == 0 && k_ % block_ == 0;
        const bool sizes = n_ > 0 && n_ <= kLargestSize && k_ > 0 && k_ <= kLargestSize;
        const bool gates = gated_ <= 1 && n_ % (1 + gated_) == 0;
        if (sizes && (bits_ == 4 || bits_ == 8) && block && zero_ < 1u << bits_ && gates)
            return nullptr;
        return fail(
            "BlockLinear: N and K must be positive, bits 4 or 8, block_size a power of two from 16 "
            "to 256 that divides K, zero a code, and gated 0 or, of an even N, 1");
    }

    ort::Status* compute(ort::KernelContext* context) const {
        thread_local Tensor read[kInputs];
        std::array<const Tensor*, kInputs> in;
        for (size_t i = 0; i < kInputs; ++i) {
            in[i] = constants_[i] ? &constants_[i] : &read[i];
            if (constants_[i]) continue;
            if (auto* status = read_input(api_, context, i, &read[i])) return status;
        }
        std::vector<int64_t>& shape = read[kX].shape;
        if (shape.empty() || shape.back() != static_cast<int64_t>(k_))
            return fail("BlockLinear: the last axis of x is not K");
        const size_t m = in[kX]->count / k_;
        shape.back() = static_cast<int64_t>(n_ / (1 + gated_));
        ort::Value* output = nullptr;
        void* y = nullptr;
        if (auto* status = api_.output(context, 0, shape.data(), shape.size(), &output))
            return status;
        if (auto* status = api_.data(output, &y)) return status;
        const Weights w{in[kCodes]->as<uint8_t>(),
                        in[kScales]->data,
                        in[kZeroPoints]->as<uint8_t>(),
                        in[kOffsets]->data,
                        in[kBias]->as<float>(),
                        n_,
                        k_,
                        bits_,
                        block_,
                        k_ / block_,
                        k_ * bits_ / 8,
                        (k_ / block_ * bits_ + 7) / 8,
                        static_cast<int>(zero_),
                        in[kScales]->type == ort::kFloat16};
        if (auto* status = check(w, in)) return status;
        return multiply(context, w, in[kX]->as<float>(), static_cast<float*>(y), m);
    }

    const ort::Api& api() const { return api_; }

  private:
    // Kernels read what the attributes say: a graph with smaller tensors must not get there.
    ort::Status* check(const Weights& w, const std::array<const Tensor*, kInputs>& in) const {
        const size_t blocks = w.n * w.blocks;
        const size_t counts[] = {w.n * w.row_bytes, blocks, w.n * w.zero_row_bytes, blocks, w.n};
        for (size_t i = kCodes; i < kInputs; ++i)
            if ((*in[i] || i < kZeroPoints) && in[i]->count != counts[i - kCodes])
                return fail("BlockLinear: the size of an input is not that of the attributes");
        const ort::ElementType type = in[kScales]->type;
        if ((type != ort::kFloat16 && type != ort::kFloat) ||
            (*in[kOffsets] && in[kOffsets]->type != type))
            return fail("BlockLinear: scales and offsets are both float16 or both float32");
        return nullptr;
    }

    ort::Status* multiply(ort::KernelContext* context, const Weights& w, const float* x, float* y,
                          size_t m) const {
        if (m == 0) return nullptr;
        thread_local Room room;
        const Kernels& kernels = choose_kernels(instructions_, bits_, k_, bfloat16_ == 1);
        const Activations a = room.fit(m, kernels, w);
        Product product{kernels, instructions_, w, a, x, y, gated_ == 1, m};
        product.columns = kernels.columns_of_task(m, product.width());
        if (product.rounds() == 1)
            Product::round(&product, 0);
        else if (auto* status =
                     api_.parallel_for(context, Product::round, product.rounds(), 0, &product))
            return status;
        const size_t tasks = product.row_tasks() * product.column_tasks();
        auto* status = api_.parallel_for(context, Product::multiply, tasks, 0, &product);
        return !status && product.out_of_memory ? out_of_memory(api_, kName) : status;
    }

    ort::Status* fail(const char* message) const {
        return api_.create_status(ort::kInvalidArgument, message);
    }

    ort::Api api_;
    InstructionSet instructions_;
    size_t n_, k_, bits_, block_, zero_, bfloat16_, gated_;
    std::array<Tensor, kInputs> constants_;
    std::array<Constant, kInputs> kept_;
};

ort::ElementType input_type(const ort::Operator*, size_t index) {
    if (index == kScales || index == kOffsets) return ort::kUndefined;  // float16 or float32
    return index == kCodes || index == kZeroPoints ? ort::kUint8 : ort::kFloat;
}

Operator describe(InstructionSet instructions) {
    Operator op = operator_of<Kernel>(instructions);
    op.input_type = input_type;
    op.input_count = [](const ort::Operator*) -> size_t { return kInputs; };
    op.output_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
    op.output_count = [](const ort::Operator*) -> size_t { return 1; };
    op.input_characteristic = [](const ort::Operator*, size_t index) {
        return index < kZeroPoints ? ort::kRequired : ort::kOptional;
    };
    return op;
}

}  // namespace

Operators block_linear_operators(InstructionSet instructions) {
    return {std::make_shared<const Operator>(describe(instructions))};
}

std::string block_linear_kernels(InstructionSet instructions) {
    const auto chosen = [=](size_t bits, bool bfloat16) {
        return std::string(choose_kernels(instructions, bits, kGroup * 2, bfloat16).name);
    };
    return "linear4=" + chosen(4, false) + " linear8=" + chosen(8, false) +
           " linear8_bfloat16=" + chosen(8, true);
}

}  // namespace enginewright
