// AddRMSNorm and SwiGLU for ONNX Runtime.

#include "each_row.h"
#include "swiglu.h"

namespace enginewright::row_ops {
namespace {

class AddRMSNorm {
  public:
    static constexpr const char* kName = "AddRMSNorm";

    AddRMSNorm(const void* table, const ort::KernelInfo* info, InstructionSet instructions)
        : api_(table), instructions_(instructions) {
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
            kernels(instructions_)
                .add_rms_norm(x.as<float>() + at, y.as<float>() + at, weight.as<float>(), epsilon_,
                              k, normed + at, total + at);
        });
    }

    const ort::Api& api() const { return api_; }

  private:
    ort::Api api_;
    InstructionSet instructions_;
    float epsilon_ = -1;
};

class SwiGLU {
  public:
    static constexpr const char* kName = "SwiGLU";

    SwiGLU(const void* table, const ort::KernelInfo*, InstructionSet instructions)
        : api_(table), instructions_(instructions) {}

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
            kernels(instructions_).swiglu(gate_up + row * 2 * k, k, out + row * k);
        });
    }

    const ort::Api& api() const { return api_; }

  private:
    ort::Api api_;
    InstructionSet instructions_;
};

}  // namespace

const Kernels& kernels(InstructionSet best) {
#if defined(__x86_64__)
    if (best >= InstructionSet::kAvx512) return kAvx512;
    if (best >= InstructionSet::kAvx2) return kAvx2;
#endif
    return kPortable;
}

}  // namespace enginewright::row_ops

namespace enginewright {

void swiglu(InstructionSet instructions, const float* gate_up, size_t k, float* out) {
    row_ops::kernels(instructions).swiglu(gate_up, k, out);
}

Operators row_operators(InstructionSet instructions) {
    const auto norm = row_ops::describe<row_ops::AddRMSNorm, 3, 2>(instructions);
    const auto swiglu = row_ops::describe<row_ops::SwiGLU, 1, 1>(instructions);
    return {std::make_shared<const Operator>(norm), std::make_shared<const Operator>(swiglu),
            row_ops::top_logits_operator(instructions)};
}

std::string row_kernels(InstructionSet instructions) {
    return std::string("rows=") + row_ops::kernels(instructions).name;
}

}  // namespace enginewright
