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

enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Vnni };

// The best that this processor has, no better than ENGINEWRIGHT_CPU_KERNELS says (portable, avx2,
// avx512, avx512vnni); looked up once.
InstructionSet instruction_set();

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

}  // namespace enginewright
