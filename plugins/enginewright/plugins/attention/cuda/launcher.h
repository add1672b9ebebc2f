// The embedded kernels on the device at hand, through the driver's own library. That library is
// opened at the first launch, so that an engine can be built where there is none.
#pragma once

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plan.h"

namespace enginewright::attention {

// The functions of libcuda that launches need; they throw std::runtime_error where one fails.
class Driver {
  public:
    static const Driver& get() {
        static const Driver driver;  // where it throws, the next call tries again
        return driver;
    }

    int device() const {
        int found = 0;
        check(ctx_get_device_(&found), "cuCtxGetDevice");
        return found;
    }
    std::string capability(int device) const {
        constexpr int kMajor = 75, kMinor = 76;
        return std::to_string(attribute(kMajor, device)) + "." +
               std::to_string(attribute(kMinor, device));
    }
    void* load(const void* code) const {
        void* library = nullptr;
        check(library_load_data_(&library, code, nullptr, nullptr, 0, nullptr, nullptr, 0),
              "cuLibraryLoadData");
        return library;
    }
    void unload(void* library) const noexcept { library_unload_(library); }
    void* kernel(void* library, const char* symbol) const {
        void* found = nullptr;
        check(library_get_kernel_(&found, library, symbol), "cuLibraryGetKernel");
        return found;
    }
    void allow_shared(void* kernel, uint32_t bytes, int device) const {
        constexpr int kMaxDynamicShared = 8;
        check(kernel_set_attribute_(kMaxDynamicShared, static_cast<int>(bytes), kernel, device),
              "cuKernelSetAttribute");
    }
    void launch(void* kernel, const std::array<uint32_t, 3>& grid, uint32_t threads,
                uint32_t shared, void* stream, void** parameters) const {
        check(launch_kernel_(kernel, grid[0], grid[1], grid[2], threads, 1, 1, shared, stream,
                             parameters, nullptr),
              "cuLaunchKernel");
    }

  private:
    Driver() : library_(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
        if (!library_) throw std::runtime_error(std::string("no NVIDIA driver: ") + dlerror());
        find(&ctx_get_device_, "cuCtxGetDevice");
        find(&device_get_attribute_, "cuDeviceGetAttribute");
        find(&library_load_data_, "cuLibraryLoadData");
        find(&library_unload_, "cuLibraryUnload");
        find(&library_get_kernel_, "cuLibraryGetKernel");
        find(&kernel_set_attribute_, "cuKernelSetAttribute");
        find(&launch_kernel_, "cuLaunchKernel");
        find(&get_error_name_, "cuGetErrorName");
    }

    template <class Function>
    void find(Function** function, const char* name) {
        *function = reinterpret_cast<Function*>(dlsym(library_, name));
        if (!*function)
            throw std::runtime_error(std::string("the NVIDIA driver has no ") + name +
                                     ": it is older than CUDA 12; update it");
    }

    int attribute(int which, int device) const {
        int value = 0;
        check(device_get_attribute_(&value, which, device), "cuDeviceGetAttribute");
        return value;
    }

    void check(int code, const char* name) const {
        if (code == 0) return;
        const char* known = nullptr;
        get_error_name_(code, &known);
        throw std::runtime_error(std::string(name) + ": " + (known ? known : "unknown error") +
                                 " (" + std::to_string(code) + ")");
    }

    void* library_;  // stays open: TensorRT itself works through it
    int (*ctx_get_device_)(int*) = nullptr;
    int (*device_get_attribute_)(int*, int, int) = nullptr;
    int (*library_load_data_)(void**, const void*, int*, void**, unsigned, int*, void**,
                              unsigned) = nullptr;
    int (*library_unload_)(void*) = nullptr;
    int (*library_get_kernel_)(void**, void*, const char*) = nullptr;
    int (*kernel_set_attribute_)(int, int, void*, int) = nullptr;
    int (*launch_kernel_)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, void*, void**, void**) = nullptr;
    int (*get_error_name_)(int, const char**) = nullptr;
};

// The four kernels of a config; throws std::runtime_error, naming what there is.
inline KernelEntries find_kernels(const Config& config, const std::string& capability) {
    KernelEntries found{};
    std::string others;
    for (size_t at = 0; at < kEntryCount; ++at) {
        const Entry& entry = kEntries[at];
        if (!(entry.config == config)) continue;
        if (capability == entry.capability) found[entry.kernel] = &entry;
        if (others.find(entry.capability) == std::string::npos)
            others += (others.empty() ? "" : ", ") + std::string(entry.capability);
    }
    for (const Entry* entry : found)
        if (!entry)
            throw std::runtime_error(
                others.empty() ? "no kernels were embedded for such an attention; build the "
                                 "engine anew"
                               : "no kernels for compute capability " + capability +
                                     ": the engine has those for " + others);
    return found;
}

// Loaded kernels, each from its first launch on; all nodes of an engine share one Launcher. Any
// thread may launch. A first launch cannot be captured in a CUDA graph.
class Launcher {
  public:
    static std::shared_ptr<Launcher> shared() {
        static std::mutex mutex;
        static std::weak_ptr<Launcher> known;
        const std::lock_guard<std::mutex> lock(mutex);
        auto found = known.lock();
        if (!found) known = found = std::make_shared<Launcher>();
        return found;
    }

    Launcher() = default;
    Launcher(const Launcher&) = delete;
    Launcher& operator=(const Launcher&) = delete;
    ~Launcher() {
        for (const auto& [key, loaded] : loaded_) Driver::get().unload(loaded.library);
    }

    // Queues one node on the stream, on the device of the thread's current context. Throws
    // std::runtime_error, std::invalid_argument.
    void run(const Config& config, const Shape& shape, const Scalars& scalars,
             const Pointers& pointers, void* stream) {
        const Driver& driver = Driver::get();
        const int device = driver.device();
        const auto kernels = find_kernels(config, driver.capability(device));
        for (auto& each : launches(kernels, shape, scalars, pointers)) queue(each, device, stream);
    }

  private:
    struct Loaded {
        void* library;
        void* kernel;
    };

    void queue(Launch& launch, int device, void* stream) {
        constexpr uint32_t kThreadsOfAWarp = 32;
        const Entry& entry = *launch.entry;
        void* nothing = nullptr;
        std::vector<void*> parameters;
        // All members of an argument's union lie at its address.
        for (auto& each : launch.arguments) parameters.push_back(&each.pointer);
        parameters.insert(parameters.end(), entry.hidden_pointers, &nothing);
        Driver::get().launch(kernel(entry, device), launch.grid, kThreadsOfAWarp * entry.num_warps,
                             entry.shared_bytes, stream, parameters.data());
    }

    void* kernel(const Entry& entry, int device) {
        constexpr uint32_t kSharedWithoutAsking = 48 << 10;
        const Driver& driver = Driver::get();
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = loaded_.find({&entry, device});
        if (found != loaded_.end()) return found->second.kernel;
        void* library = driver.load(entry.code);
        void* kernel = nullptr;
        try {
            kernel = driver.kernel(library, entry.symbol);
            if (entry.shared_bytes > kSharedWithoutAsking)
                driver.allow_shared(kernel, entry.shared_bytes, device);
            loaded_[{&entry, device}] = {library, kernel};
        } catch (...) {
            driver.unload(library);
            throw;
        }
        return kernel;
    }

    std::mutex mutex_;
    std::map<std::pair<const Entry*, int>, Loaded> loaded_;
};

}  // namespace enginewright::attention
