// The library's entry: registers every operator of ours in one domain.
//
// Which kernels run is a session's own choice: its entry kEntry of the configuration names the
// instruction set that they are held to.

#include <map>
#include <mutex>
#include <new>

#include "operators.h"

namespace enginewright {
namespace {

constexpr const char* kDomain = "enginewright";
constexpr const char* kEntry = "enginewright.cpu_kernels";

// Sessions refer to it as long as the process lives, so there is one for all that have the same
// instruction set, and none is ever freed.
struct Registered {
    Operators operators;
    ort::Domain* domain = nullptr;
    ort::Status* status;

    Registered(const ort::Api& api, InstructionSet instructions) {
        status = api.create_domain(kDomain, &domain);
        for (const auto& found : {block_linear_operators(instructions),
                                  attention_operators(instructions), row_operators(instructions)})
            operators.insert(operators.end(), found.begin(), found.end());
        for (const auto& op : operators)
            if (!status) status = api.add_operator(domain, op.get());
    }
};

const Registered& registered(const ort::Api& api, InstructionSet instructions) {
    static std::mutex mutex;
    static auto& known = *new std::map<InstructionSet, Registered>;
    const std::lock_guard<std::mutex> lock(mutex);
    return known.try_emplace(instructions, api, instructions).first->second;
}

InstructionSet instruction_set_of(const ort::Api& api, const ort::SessionOptions* options) {
    char name[16];
    size_t size = sizeof name;
    auto* status = api.config_entry(options, kEntry, name, &size);
    if (!status) return instruction_set(name);
    api.release(status);
    return instruction_set(nullptr);
}

}  // namespace
}  // namespace enginewright

// What ONNX Runtime calls when it loads the library.
extern "C" [[gnu::visibility("default")]] enginewright::ort::Status* RegisterCustomOps(
    enginewright::ort::SessionOptions* options, const enginewright::ort::ApiBase* base) {
    using namespace enginewright;
    const void* table = base->get_api(ort::kVersion);
    if (!table)
        return ort::Api(base->get_api(1))
            .create_status(ort::kFail, "enginewright: this ONNX Runtime is older than 1.17");
    const ort::Api api(table);
    try {
        const Registered& found = registered(api, instruction_set_of(api, options));
        if (found.status)
            return api.create_status(ort::kFail, "enginewright: an operator cannot be registered");
        return api.add_domain(options, found.domain);
    } catch (const std::bad_alloc&) {
        return out_of_memory(api, "enginewright");
    }
}

// Which kernels a session has whose entry kEntry is `held_to`; null: that has none. The instruction
// set, and then what each operator takes of it; null where memory ran out. The text is the calling
// thread's, until it asks again.
extern "C" [[gnu::visibility("default")]] const char* EnginewrightCpuKernels(const char* held_to) {
    using namespace enginewright;
    thread_local std::string text;
    const InstructionSet set = instruction_set(held_to);
    try {
        text = std::string(name_of(set)) + " " + block_linear_kernels(set) + " " +
               attention_kernels(set) + " " + row_kernels(set);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
    return text.c_str();
}
