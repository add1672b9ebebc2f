// The library's entry: registers every operator of ours in one domain.

#include "operators.h"

namespace enginewright {
namespace {

constexpr const char* kDomain = "enginewright";

// Sessions refer to the domain as long as the process lives, so there is one for all.
struct Registered {
    ort::Domain* domain = nullptr;
    ort::Status* status;

    explicit Registered(const ort::Api& api) {
        status = api.create_domain(kDomain, &domain);
        for (const auto& operators :
             {block_linear_operators(), attention_operators(), row_operators()})
            for (const ort::Operator* op : operators)
                if (!status) status = api.add_operator(domain, op);
    }
};

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
    static const Registered registered(api);
    if (registered.status)
        return api.create_status(ort::kFail, "enginewright: an operator cannot be registered");
    return api.add_domain(options, registered.domain);
}
