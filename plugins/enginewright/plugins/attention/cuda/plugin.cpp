// CachedAttention as a TensorRT plugin that is embedded in an engine with its kernels: the same op
// as tensorrt.py's (name, fields, inputs, outputs, caches written in place).
//
// Links to neither TensorRT nor CUDA. Errors go to TensorRT's logger; none leaves as an exception.

#include <NvInferRuntime.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "launcher.h"

namespace enginewright::attention {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr const char* kPluginName = "EnginewrightCachedAttention";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "enginewright";
constexpr int kOutputs = 3;                    // out, k_cache_out, v_cache_out
constexpr int kSources[kOutputs] = {0, 3, 4};  // the input that each has type and shape of

std::atomic<nvinfer1::ILoggerFinder*> logger_finder = nullptr;

void report(const char* message) noexcept {
    char text[1024];
    std::snprintf(text, sizeof text, "%s: %s", kPluginName, message);
    auto* finder = logger_finder.load();
    auto* logger = finder ? finder->findLogger() : nullptr;
    if (logger)
        logger->log(nvinfer1::ILogger::Severity::kERROR, text);
    else
        std::fprintf(stderr, "%s\n", text);
}

// What `work` gives, or `failed` after the report of what it threw.
template <class Result, class Work>
Result guarded(Result failed, Work work) noexcept {
    try {
        return work();
    } catch (const std::exception& error) {
        report(error.what());
    }
    return failed;
}

// The fields of a node.
struct Attributes {
    int32_t num_heads, kv_heads;
    float scale;
    int32_t window;
    float softcap;
    int32_t rotary_dim, interleaved, abi_version, has_sinks, quantized, block_size;

    // The inputs that such a node has, in order.
    std::vector<ArgumentName> inputs() const {
        std::vector<ArgumentName> names{kQ,      kK,          kV,           kKCache,
                                        kVCache, kBlockTable, kPastLengths, kNewLengths};
        if (rotary_dim) names.insert(names.end(), {kCos, kSin});
        if (has_sinks) names.push_back(kSinks);
        if (quantized) names.insert(names.end(), {kKScale, kVScale});
        return names;
    }
    Scalars scalars() const { return {scale, window, softcap}; }
};

struct FieldPlace {
    const char* name;
    size_t offset;
    PluginFieldType type;
};

constexpr FieldPlace kFields[] = {
    {"num_heads", offsetof(Attributes, num_heads), PluginFieldType::kINT32},
    {"kv_heads", offsetof(Attributes, kv_heads), PluginFieldType::kINT32},
    {"scale", offsetof(Attributes, scale), PluginFieldType::kFLOAT32},
    {"window", offsetof(Attributes, window), PluginFieldType::kINT32},
    {"softcap", offsetof(Attributes, softcap), PluginFieldType::kFLOAT32},
    {"rotary_dim", offsetof(Attributes, rotary_dim), PluginFieldType::kINT32},
    {"interleaved", offsetof(Attributes, interleaved), PluginFieldType::kINT32},
    {"abi_version", offsetof(Attributes, abi_version), PluginFieldType::kINT32},
    {"has_sinks", offsetof(Attributes, has_sinks), PluginFieldType::kINT32},
    {"quantized", offsetof(Attributes, quantized), PluginFieldType::kINT32},
    {"block_size", offsetof(Attributes, block_size), PluginFieldType::kINT32},
};

const PluginField& find_field(const PluginFieldCollection& given, const FieldPlace& place) {
    for (int32_t at = 0; at < given.nbFields; ++at) {
        const PluginField& field = given.fields[at];
        if (std::strcmp(field.name, place.name) != 0) continue;
        if (field.type != place.type || field.length != 1 || !field.data)
            throw std::invalid_argument(std::string("the type of ") + place.name + " is wrong");
        return field;
    }
    throw std::invalid_argument(std::string("the node has no ") + place.name);
}

Attributes read_attributes(const PluginFieldCollection& given) {
    Attributes read{};
    for (const FieldPlace& place : kFields)
        std::memcpy(reinterpret_cast<char*>(&read) + place.offset, find_field(given, place).data,
                    sizeof(int32_t));
    if (read.abi_version != kAbiVersion)
        throw std::invalid_argument("abi_version " + std::to_string(read.abi_version) +
                                    ", this plugin has " + std::to_string(kAbiVersion));
    return read;
}

Config config_of(const Attributes& a, const PluginTensorDesc& q, const PluginTensorDesc& cache) {
    Config config{};
    config.io = q.type == DataType::kBF16 ? Io::kBfloat16 : Io::kFloat16;
    config.num_heads = a.num_heads;
    config.kv_heads = a.kv_heads;
    config.head_dim = static_cast<int32_t>(cache.dims.d[3]);
    config.block_size = a.block_size;
    if (a.quantized) config.cache = cache.type == DataType::kFP8 ? Cache::kFp8 : Cache::kInt8;
    config.rotary_dim = a.rotary_dim;
    config.interleaved = a.interleaved != 0;
    config.has_sinks = a.has_sinks != 0;
    config.has_softcap = a.softcap > 0;
    return config;
}

// Whether a tensor may have that type next to queries of another.
bool legal_type(ArgumentName name, DataType type, DataType queries, bool quantized) {
    switch (name) {
        case kBlockTable:
        case kPastLengths:
        case kNewLengths:
            return type == DataType::kINT32;
        case kCos:
        case kSin:
        case kSinks:
        case kKScale:
        case kVScale:
            return type == DataType::kFLOAT;
        case kQ:
            return type == DataType::kHALF || type == DataType::kBF16;
        case kKCache:
        case kVCache:
            if (quantized) return type == DataType::kINT8 || type == DataType::kFP8;
            return type == queries;
        default:
            return type == queries;
    }
}

// The first inputs stand where ArgumentName has them: inputs[kQ], inputs[kKCache], and so on.
class CachedAttention final : public nvinfer1::IPluginV3,
                              public nvinfer1::IPluginV3OneCore,
                              public nvinfer1::IPluginV3OneBuildV2,
                              public nvinfer1::IPluginV3OneRuntime {
  public:
    CachedAttention(const Attributes& attributes, std::shared_ptr<Launcher> launcher)
        : attributes_(attributes), inputs_(attributes.inputs()), launcher_(std::move(launcher)) {
        for (const FieldPlace& place : kFields)
            fields_.emplace_back(place.name,
                                 reinterpret_cast<const char*>(&attributes_) + place.offset,
                                 place.type, 1);
        serialized_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    CachedAttention(const CachedAttention&) = delete;  // fields_ point into the object
    CachedAttention& operator=(const CachedAttention&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE:
                return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD:
                return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME:
                return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override {
        return guarded(static_cast<nvinfer1::IPluginV3*>(nullptr), [&]() -> nvinfer1::IPluginV3* {
            return new CachedAttention(attributes_, launcher_);
        });
    }

    const char* getPluginName() const noexcept override { return kPluginName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return kOutputs; }
    int32_t getAliasedInput(int32_t output) noexcept override {
        return output == 1 || output == 2 ? kSources[output] : -1;
    }
    int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                               int32_t count) const noexcept override {
        if (!has_inputs(count)) return -1;
        for (int at = 0; at < kOutputs; ++at) outputs[at] = inputs[kSources[at]];
        return 0;
    }
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count,
                            const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                            int32_t, nvinfer1::IExprBuilder&) noexcept override {
        if (!has_inputs(count)) return -1;
        for (int at = 0; at < kOutputs; ++at) outputs[at] = inputs[kSources[at]];
        return 0;
    }
    bool supportsFormatCombination(int32_t at, const DynamicPluginTensorDesc* tensors,
                                   int32_t inputs, int32_t outputs) noexcept override {
        if (!has_inputs(inputs) || outputs != kOutputs) return false;
        const PluginTensorDesc& tensor = tensors[at].desc;
        const ArgumentName name =
            at == inputs ? kOut : inputs_[at < inputs ? at : kSources[at - inputs]];
        return tensor.format == nvinfer1::TensorFormat::kLINEAR &&
               legal_type(name, tensor.type, tensors[kQ].desc.type, attributes_.quantized);
    }
    int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t count,
                            const DynamicPluginTensorDesc*, int32_t) noexcept override {
        return guarded(-1, [&] {
            if (!has_inputs(count)) throw std::invalid_argument("the node lacks an input");
            const Config config = config_of(attributes_, inputs[kQ].desc, inputs[kKCache].desc);
            for (size_t at = 0; at < kEntryCount; ++at)
                if (kEntries[at].config == config) return 0;
            throw std::invalid_argument("no kernels were embedded for such an attention");
        });
    }
    size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                            const DynamicPluginTensorDesc*, int32_t) const noexcept override {
        const Config config = config_of(attributes_, inputs[kQ].desc, inputs[kKCache].desc);
        return workspace_bytes(config, std::max<int64_t>(inputs[kQ].max.d[0], 1));
    }

    int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                          int32_t) noexcept override {
        return 0;
    }
    int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*, const void* const* in,
                    void* const* out, void* workspace, cudaStream_t stream) noexcept override {
        return guarded(-1, [&] {
            Pointers pointers{};
            for (size_t at = 0; at < inputs_.size(); ++at) pointers[inputs_[at]] = in[at];
            pointers[kOut] = out[0];
            pointers[kWorkspace] = workspace;
            const auto& queries = inputs[kQ].dims.d;
            const Shape shape{queries[0], queries[1], inputs[kBlockTable].dims.d[1]};
            const Config config = config_of(attributes_, inputs[kQ], inputs[kKCache]);
            launcher_->run(config, shape, attributes_.scalars(), pointers, stream);
            return 0;
        });
    }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
        return clone();
    }
    const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &serialized_; }

  private:
    bool has_inputs(int32_t count) const { return count == static_cast<int32_t>(inputs_.size()); }

    const Attributes attributes_;
    const std::vector<ArgumentName> inputs_;
    const std::shared_ptr<Launcher> launcher_;
    std::vector<PluginField> fields_;
    PluginFieldCollection serialized_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    Creator() {
        for (const FieldPlace& place : kFields)
            fields_.emplace_back(place.name, nullptr, place.type, 1);
        names_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }

    nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* given,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return guarded(static_cast<nvinfer1::IPluginV3*>(nullptr), [&]() -> nvinfer1::IPluginV3* {
            if (!given) throw std::invalid_argument("the node has no attributes");
            return new CachedAttention(read_attributes(*given), Launcher::shared());
        });
    }
    const PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
    const char* getPluginName() const noexcept override { return kPluginName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    std::vector<PluginField> fields_;
    PluginFieldCollection names_;
};

}  // namespace
}  // namespace enginewright::attention

#define ENGINEWRIGHT_EXPORT extern "C" __attribute__((visibility("default")))

// What TensorRT asks a plugin library for.
ENGINEWRIGHT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    enginewright::attention::logger_finder = finder;
}

ENGINEWRIGHT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static enginewright::attention::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}
