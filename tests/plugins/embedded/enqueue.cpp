// Runs a node of a plugin library the way TensorRT does, without TensorRT:
//
//   enqueue LIBRARY IO CACHE HEAD_DIM BATCH TOKENS BLOCKS FIELD=VALUE...
//
// Prints what the plugin says of itself, and what it reports. A field whose value has a point is a
// float. Every pointer is 0x1000 times its place among the inputs, counted from 1.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

struct Logger : ILogger {
    void log(Severity severity, const char* message) noexcept override {
        std::printf("log %d %s\n", static_cast<int>(severity), message);
    }
};

struct Finder : ILoggerFinder {
    Logger logger;
    ILogger* findLogger() override { return &logger; }
};

DataType type_of(const std::string& name) {
    if (name == "bfloat16") return DataType::kBF16;
    if (name == "int8") return DataType::kINT8;
    if (name == "fp8") return DataType::kFP8;
    return name == "float16" ? DataType::kHALF : DataType::kFLOAT;
}

struct Fields {
    std::vector<std::string> names;
    std::vector<int32_t> integers;
    std::vector<float> reals;
    std::vector<PluginField> fields;

    void add(const std::string& text) {
        const auto at = text.find('=');
        const std::string value = text.substr(at + 1);
        names.push_back(text.substr(0, at));
        integers.push_back(std::atoi(value.c_str()));
        reals.push_back(std::strtof(value.c_str(), nullptr));
        const bool real = value.find('.') != std::string::npos;
        const auto type = real ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
        const void* data = real ? static_cast<const void*>(&reals.back()) : &integers.back();
        fields.emplace_back(names.back().c_str(), data, type, 1);
    }
};

void describe(IPluginV3* plugin, const std::vector<DynamicPluginTensorDesc>& tensors, int inputs) {
    auto* build = static_cast<IPluginV3OneBuildV2*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    std::printf("alias %d %d %d\n", build->getAliasedInput(0), build->getAliasedInput(1),
                build->getAliasedInput(2));
    bool legal = true;
    for (size_t at = 0; at < tensors.size(); ++at)
        legal &= build->supportsFormatCombination(static_cast<int32_t>(at), tensors.data(), inputs,
                                                  static_cast<int32_t>(tensors.size()) - inputs);
    std::printf("legal %d\n", legal);
    std::printf("configured %d\n", build->configurePlugin(tensors.data(), inputs, nullptr, 3));
    std::printf("workspace %zu\n", build->getWorkspaceSize(tensors.data(), inputs, nullptr, 3));
}

}  // namespace

int main(int count, char** argument) {
    void* library = dlopen(argument[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) return std::printf("%s\n", dlerror()), 1;
    Finder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    int32_t creators = 0;
    auto* found = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
        dlsym(library, "getCreators"))(creators);
    auto* creator = static_cast<IPluginCreatorV3One*>(found[0]);

    const DataType io = type_of(argument[2]), cache = type_of(argument[3]);
    const int64_t dim = std::atoi(argument[4]), batch = std::atoi(argument[5]),
                  tokens = std::atoi(argument[6]), blocks = std::atoi(argument[7]);
    Fields fields;
    fields.names.reserve(32);
    fields.integers.reserve(32);
    fields.reals.reserve(32);
    for (int at = 8; at < count; ++at) fields.add(argument[at]);
    const auto value = [&](const char* name) {
        for (size_t at = 0; at < fields.names.size(); ++at)
            if (fields.names[at] == name) return fields.integers[at];
        return 0;
    };

    const auto tensor = [](DataType type, std::vector<int64_t> sizes) {
        DynamicPluginTensorDesc made{};
        made.desc.type = type;
        made.desc.format = TensorFormat::kLINEAR;
        made.desc.dims.nbDims = static_cast<int32_t>(sizes.size());
        for (size_t at = 0; at < sizes.size(); ++at) made.desc.dims.d[at] = sizes[at];
        made.max = made.desc.dims;
        return made;
    };
    const int32_t kv_heads = value("kv_heads"), size = value("block_size");
    const auto queries = tensor(io, {batch, tokens, value("num_heads") * dim});
    const auto keys = tensor(io, {batch, tokens, kv_heads * dim});
    const auto pool = tensor(cache, {99, kv_heads, size, dim});
    const auto lengths = tensor(DataType::kINT32, {batch});
    std::vector<DynamicPluginTensorDesc> tensors{
        queries, keys,   keys, pool, pool, tensor(DataType::kINT32, {batch, blocks}),
        lengths, lengths};
    const int more =
        (value("rotary_dim") ? 2 : 0) + value("has_sinks") + (value("quantized") ? 2 : 0);
    for (int at = 0; at < more; ++at) tensors.push_back(tensor(DataType::kFLOAT, {7}));
    const auto inputs = static_cast<int32_t>(tensors.size());
    tensors.insert(tensors.end(), {queries, pool, pool});

    const PluginFieldCollection given{static_cast<int32_t>(fields.fields.size()),
                                      fields.fields.data()};
    IPluginV3* plugin = creator->createPlugin("node", &given, TensorRTPhase::kRUNTIME);
    if (!plugin) return 0;
    describe(plugin, tensors, inputs);
    auto* core = static_cast<IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::vector<PluginField> kept;
    const PluginFieldCollection* serialized = core->getFieldsToSerialize();
    for (int32_t at = 0; at < serialized->nbFields; ++at) {
        const PluginField& field = serialized->fields[at];
        if (field.type == PluginFieldType::kINT32)
            std::printf("field %s=%d\n", field.name, *static_cast<const int32_t*>(field.data));
        else
            std::printf("field %s=%g\n", field.name, *static_cast<const float*>(field.data));
    }

    IPluginV3* attached = core->attachToContext(nullptr);
    delete plugin;  // a context's plugin does not need the one that it came from
    core = static_cast<IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::vector<PluginTensorDesc> described;
    std::vector<const void*> in;
    for (int32_t at = 0; at < inputs; ++at) {
        described.push_back(tensors[at].desc);
        in.push_back(reinterpret_cast<const void*>(0x1000 * (at + 1)));
    }
    void* const out[] = {reinterpret_cast<void*>(0x100000), nullptr, nullptr};
    const int status = core->enqueue(described.data(), nullptr, in.data(), out,
                                     reinterpret_cast<void*>(0x200000), nullptr);
    std::printf("status %d\n", status);
    delete attached;
    dlclose(library);
}
