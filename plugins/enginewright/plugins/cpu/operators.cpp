// What the operators share; see operators.h.

#include "operators.h"

#include <cstdlib>
#include <iterator>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace enginewright {
namespace {

// In the order of InstructionSet.
constexpr const char* kNames[] = {"portable", "avx2", "avx2vnni", "avx512", "avx512vnni", "amx"};

InstructionSet set_named(const char* name) {
    for (size_t at = 0; at < std::size(kNames); ++at)
        if (name && std::strcmp(name, kNames[at]) == 0) return static_cast<InstructionSet>(at);
    return InstructionSet::kAmx;
}

#if defined(__x86_64__)
// The system has to be asked for the room that tiles take in what it saves of a thread.
bool ask_for_tiles() {
    constexpr int kRequest = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

InstructionSet best(InstructionSet most) {
#if defined(__x86_64__)
    // Not every compiler knows the names of F16C (bit 29 of the first feature leaf) and AVX-VNNI.
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    const bool avx_vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
    const bool tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
    const bool amx = avx512_vnni && __builtin_cpu_supports("avx512vbmi") && bf16 && tiles;
    if (most >= InstructionSet::kAmx && amx && ask_for_tiles()) return InstructionSet::kAmx;
    if (most >= InstructionSet::kAvx512Vnni && avx512_vnni) return InstructionSet::kAvx512Vnni;
    if (most >= InstructionSet::kAvx512 && avx512) return InstructionSet::kAvx512;
    if (most >= InstructionSet::kAvx2Vnni && avx2 && avx_vnni) return InstructionSet::kAvx2Vnni;
    if (most >= InstructionSet::kAvx2 && avx2) return InstructionSet::kAvx2;
#endif
    return InstructionSet::kPortable;
}

ort::Status* read(const ort::Api& api, const ort::Value* value, Tensor* tensor) {
    tensor->data = nullptr;
    tensor->count = 0;
    if (!value) return nullptr;
    if (auto* status = api.data(const_cast<ort::Value*>(value), &tensor->data)) return status;
    ort::TensorInfo* info = nullptr;
    if (auto* status = api.tensor_info(value, &info)) return status;
    size_t rank = 0;
    auto* status = api.element_count(info, &tensor->count);
    if (!status) status = api.element_type(info, &tensor->type);
    if (!status) status = api.rank(info, &rank);
    if (!status) {
        tensor->shape.resize(rank);
        status = api.dimensions(info, tensor->shape.data(), rank);
    }
    api.release(info);
    return status;
}

}  // namespace

const char* name_of(InstructionSet set) { return kNames[static_cast<size_t>(set)]; }

InstructionSet instruction_set(const char* held_to) {
    const char* asked = std::getenv("ENGINEWRIGHT_CPU_KERNELS");
    return best(set_named(asked && *asked ? asked : held_to));
}

ort::Status* out_of_memory(const ort::Api& api, const char* name) {
    return api.create_status(ort::kFail, (std::string(name) + ": out of memory").c_str());
}

ort::Status* read_input(const ort::Api& api, const ort::KernelContext* context, size_t index,
                        Tensor* tensor) {
    const ort::Value* value = nullptr;
    if (auto* status = api.input(context, index, &value)) return status;
    return read(api, value, tensor);
}

Tensor read_constant(const ort::Api& api, const ort::KernelInfo* info, size_t index) {
    Tensor tensor;
    int constant = 0;
    const ort::Value* value = nullptr;
    auto* status = api.constant_input(info, index, &constant, &value);
    if (!status) status = read(api, constant ? value : nullptr, &tensor);
    if (!status) return tensor;
    api.release(status);
    return {};
}

}  // namespace enginewright
