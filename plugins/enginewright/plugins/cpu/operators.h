// The operators of the library, and what they share: how one is described to ONNX Runtime, how its
// tensors are read, and which instruction sets the processor has.
#pragma once

#include <cstring>
#include <new>
#include <vector>

#include "onnxruntime_abi.h"

namespace enginewright {

// They live as long as the process; one for each type that a tensor may have.
std::vector<const ort::Operator*> block_linear_operators();
std::vector<const ort::Operator*> attention_operators();
std::vector<const ort::Operator*> row_operators();

enum class InstructionSet { kPortable, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni, kAmx };

// The best that this processor has, no better than ENGINEWRIGHT_CPU_KERNELS says (portable, avx2,
// avx2vnni, avx512, avx512vnni, amx); looked up once.
InstructionSet instruction_set();

// The error that says of the operator of that name that memory ran out.
ort::Status* out_of_memory(const ort::Api& api, const char* name);

struct Tensor {
    void* data = nullptr;
    size_t count = 0;
    ort::ElementType type = ort::kUndefined;
    std::vector<int64_t> shape;

    explicit operator bool() const { return data != nullptr; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

// An input; without data where it is left out. The tensor's memory for its shape is used again.
ort::Status* read_input(const ort::Api& api, const ort::KernelContext* context, size_t index,
                        Tensor* tensor);

// An input that is a constant of the graph, once for all runs; without data if it is none.
Tensor read_constant(const ort::Api& api, const ort::KernelInfo* info, size_t index);

// An attribute of a node; what is missing leaves the value as it is.
template <class T>
void read_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, T* value) {
    T found{};
    if (auto* status = api.attribute(info, name, &found))
        api.release(status);
    else
        *value = found;
}

// An operator of the CPU whose nodes are run by a `Kernel`, which has kName, check() of its
// attributes, and compute(context). Inputs, outputs and their types are left to be said.
template <class Kernel>
ort::Operator operator_of() {
    ort::Operator op{};
    op.version = ort::kVersion;
    op.name = [](const ort::Operator*) { return Kernel::kName; };
    op.provider = [](const ort::Operator*) -> const char* { return nullptr; };  // the CPU's
    op.input_memory = [](const ort::Operator*, size_t) { return 0; };
    op.output_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
    op.start_version = [](const ort::Operator*) { return 1; };
    op.end_version = [](const ort::Operator*) { return 1; };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.create_checked = [](const ort::Operator*, const void* table, const ort::KernelInfo* info,
                           void** kernel) {
        auto* created = new (std::nothrow) Kernel(table, info);
        if (!created) return out_of_memory(ort::Api(table), Kernel::kName);
        auto* status = created->check();
        if (status)
            delete created;
        else
            *kernel = created;
        return status;
    };
    // Exceptions must not cross the C interface; only memory can run out there.
    op.compute_checked = [](void* kernel, ort::KernelContext* context) {
        const auto& running = *static_cast<const Kernel*>(kernel);
        try {
            return running.compute(context);
        } catch (const std::bad_alloc&) {
            return out_of_memory(running.api(), Kernel::kName);
        }
    };
    return op;
}

}  // namespace enginewright
