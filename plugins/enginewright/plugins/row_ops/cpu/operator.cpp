// The operators over rows for ONNX Runtime: AddRMSNorm and SwiGLU.

#include <algorithm>

#include "kernels.h"
#include "operators.h"

namespace enginewright::row_ops {
namespace {

// Numbers below which sharing them out takes longer than they do.
constexpr size_t kNumbersOfTask = 1 << 14;

const Kernels& kernels() {
#if defined(__x86_64__)
    if (instruction_set() >= InstructionSet::kAvx512) return kAvx512;
    if (instruction_set() >= InstructionSet::kAvx2) return kAvx2;
#endif
    return kPortable;
}

// Calls run(row) for all rows of k numbers each, on the session's threads where there are many.
template <class Run>
ort::Status* each_row(const ort::Api& api, const ort::KernelContext* context, size_t rows, size_t k,
                      const Run& run) {
    struct Shared {
        const Run& run;
        size_t rows, of_task;
    } shared{run, rows, std::max<size_t>(1, kNumbersOfTask / k)};
    const auto task = [](void* argument, size_t at) {
        const auto& s = *static_cast<const Shared*>(argument);
        const size_t end = std::min(s.rows, (at + 1) * s.of_task);
        for (size_t row = at * s.of_task; row < end; ++row) s.run(row);
    };
    const size_t tasks = (rows + shared.of_task - 1) / shared.of_task;
    if (tasks > 1) return api.parallel_for(context, task, tasks, 0, &shared);
    if (tasks) task(&shared, 0);
    return nullptr;
}

// The memory of an output; null where nobody wants it.
ort::Status* open_output(const ort::Api& api, ort::KernelContext* context, size_t index,
                         const std::vector<int64_t>& shape, float** data) {
    ort::Value* value = nullptr;
    *data = nullptr;
    if (auto* status = api.output(context, index, shape.data(), shape.size(), &value))
        return status;
    return value ? api.data(value, reinterpret_cast<void**>(data)) : nullptr;
}

class AddRMSNorm {
  public:
    static constexpr const char* kName = "AddRMSNorm";

    AddRMSNorm(const void* table, const ort::KernelInfo* info) : api_(table) {
        read_attribute(api_, info, "epsilon", &epsilon_);
    }

    ort::Status* check() const {
        if (epsilon_ >= 0) return nullptr;
        return api_.create_status(ort::kInvalidArgument, "AddRMSNorm: epsilon must be given, >= 0");
    }

    ort::Status* compute(ort::KernelContext* context) const {
        thread_local Tensor in[3];
        for (size_t i = 0; i < 3; ++i)
            if (auto* status = read_input(api_, context, i, &in[i])) return status;
        const auto& [x, y, weight] = in;
        const size_t k = weight.count;
        if (x.shape != y.shape || x.shape.empty() || k == 0 ||
            x.shape.back() != static_cast<int64_t>(k))
            return api_.create_status(ort::kInvalidArgument,
                                      "AddRMSNorm: x and y must be alike, with weight's length");
        float *normed = nullptr, *total = nullptr;
        if (auto* status = open_output(api_, context, 0, x.shape, &normed)) return status;
        if (auto* status = open_output(api_, context, 1, x.shape, &total)) return status;
        if (!total) total = normed;
        return each_row(api_, context, x.count / k, k, [&](size_t row) {
            const size_t at = row * k;
            kernels().add_rms_norm(x.as<float>() + at, y.as<float>() + at, weight.as<float>(),
                                   epsilon_, k, normed + at, total + at);
        });
    }

    const ort::Api& api() const { return api_; }

  private:
    ort::Api api_;
    float epsilon_ = -1;
};

class SwiGLU {
  public:
    static constexpr const char* kName = "SwiGLU";

    SwiGLU(const void* table, const ort::KernelInfo*) : api_(table) {}

    ort::Status* check() const { return nullptr; }

    ort::Status* compute(ort::KernelContext* context) const {
        thread_local Tensor in;
        if (auto* status = read_input(api_, context, 0, &in)) return status;
        if (in.shape.empty() || in.shape.back() <= 0 || in.shape.back() % 2)
            return api_.create_status(ort::kInvalidArgument,
                                      "SwiGLU: the last axis must hold a gate and as much more");
        const size_t k = static_cast<size_t>(in.shape.back()) / 2, rows = in.count / (2 * k);
        in.shape.back() = static_cast<int64_t>(k);
        float* out = nullptr;
        if (auto* status = open_output(api_, context, 0, in.shape, &out)) return status;
        const float* gate_up = in.as<float>();
        return each_row(api_, context, rows, k, [&](size_t row) {
            kernels().swiglu(gate_up + row * 2 * k, k, out + row * k);
        });
    }

    const ort::Api& api() const { return api_; }

  private:
    ort::Api api_;
};

template <class Kernel, size_t kInputs, size_t kOutputs>
ort::Operator describe() {
    ort::Operator op = operator_of<Kernel>();
    op.input_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
    op.input_count = [](const ort::Operator*) { return kInputs; };
    op.input_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
    op.output_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
    op.output_count = [](const ort::Operator*) { return kOutputs; };
    op.output_characteristic = [](const ort::Operator*, size_t index) {
        return index == 0 ? ort::kRequired : ort::kOptional;
    };
    return op;
}

}  // namespace
}  // namespace enginewright::row_ops

namespace enginewright {

std::vector<const ort::Operator*> row_operators() {
    static const ort::Operator norm = row_ops::describe<row_ops::AddRMSNorm, 3, 2>();
    static const ort::Operator swiglu = row_ops::describe<row_ops::SwiGLU, 1, 1>();
    return {&norm, &swiglu};
}

}  // namespace enginewright
