// The operators of the library, and what they share: how one is described to ONNX Runtime, how its
// tensors are read, and which instruction sets the processor has.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "onnxruntime_abi.h"

namespace enginewright {

enum class InstructionSet { kPortable, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni, kAmx };

// portable, avx2, avx2vnni, avx512, avx512vnni, amx
const char* name_of(InstructionSet set);

// The best that this processor has, no better than ENGINEWRIGHT_CPU_KERNELS says, or, where that is
// not set, than `held_to`: one of these names; any other, null too, sets no limit.
InstructionSet instruction_set(const char* held_to);

// What ONNX Runtime is told of an operator, and the instruction set that its kernels may use.
struct Operator : ort::Operator {
    InstructionSet instructions;
};
using Operators = std::vector<std::shared_ptr<const Operator>>;

// One for each type that a tensor may have.
Operators block_linear_operators(InstructionSet instructions);
Operators attention_operators(InstructionSet instructions);
Operators row_operators(InstructionSet instructions);

// Which kernels these operators take, as "name=instruction set", parted by spaces.
std::string block_linear_kernels(InstructionSet instructions);
std::string attention_kernels(InstructionSet instructions);
std::string row_kernels(InstructionSet instructions);

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

// An operator of the CPU whose nodes are run by a `Kernel`, which is made of the API's table, what
// is known of the node, and the instruction set, and has kName, check() of its attributes, and
// compute(context). Inputs, outputs and their types are left to be said. Exceptions must not cross
// the C interface; only memory can run out there.
template <class Kernel>
Operator operator_of(InstructionSet instructions) {
    Operator op{};
    op.instructions = instructions;
    op.version = ort::kVersion;
    op.name = [](const ort::Operator*) { return Kernel::kName; };
    op.provider = [](const ort::Operator*) -> const char* { return nullptr; };  // the CPU's
    op.input_memory = [](const ort::Operator*, size_t) { return 0; };
    op.output_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
    op.start_version = [](const ort::Operator*) { return 1; };
    op.end_version = [](const ort::Operator*) { return 1; };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.create_checked = [](const ort::Operator* op, const void* table, const ort::KernelInfo* info,
                           void** kernel) {
        const InstructionSet instructions = static_cast<const Operator*>(op)->instructions;
        try {
            auto created = std::make_unique<Kernel>(table, info, instructions);
            auto* status = created->check();
            if (!status) *kernel = created.release();
            return status;
        } catch (const std::bad_alloc&) {
            return out_of_memory(ort::Api(table), Kernel::kName);
        }
    };
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
