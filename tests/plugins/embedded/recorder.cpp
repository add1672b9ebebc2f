// Stands in for the driver's library, libcuda.so.1: prints what it is asked for, one line a call.
//
// FAKE_DEVICE: the current device; capability 8.6 for device 0, 9.0 for 1, 7.5 for 2.
// FAKE_FAIL: the name of a function that fails. A kernel's symbol ends in its parameters' number.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

int status(const char* function) {
    const char* failing = std::getenv("FAKE_FAIL");
    return failing && !std::strcmp(failing, function) ? 719 : 0;
}

}  // namespace

extern "C" {

int cuGetErrorName(int, const char** name) {
    *name = "CUDA_ERROR_LAUNCH_FAILED";
    return 0;
}

int cuCtxGetDevice(int* device) {
    *device = std::atoi(std::getenv("FAKE_DEVICE"));
    return status("cuCtxGetDevice");
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    const int capabilities[][2] = {{8, 6}, {9, 0}, {7, 5}};
    *value = capabilities[device][attribute - 75];
    return 0;
}

int cuLibraryLoadData(void** library, const void* code, int*, void**, unsigned, int*, void**,
                      unsigned) {
    std::printf("load %016llx\n", *static_cast<const unsigned long long*>(code));
    *library = const_cast<void*>(code);
    return status("cuLibraryLoadData");
}

int cuLibraryUnload(void* library) {
    std::printf("unload %016llx\n", *static_cast<const unsigned long long*>(library));
    return 0;
}

int cuLibraryGetKernel(void** kernel, void*, const char* symbol) {
    *kernel = const_cast<char*>(symbol);
    return status("cuLibraryGetKernel");
}

int cuKernelSetAttribute(int attribute, int value, void* kernel, int device) {
    std::printf("attribute %s %d %d %d\n", static_cast<char*>(kernel), attribute, value, device);
    return 0;
}

int cuLaunchKernel(void* kernel, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
    const char* symbol = static_cast<char*>(kernel);
    const int count = std::atoi(std::strrchr(symbol, '_') + 1);
    flockfile(stdout);  // threads launch at the same time, and a line is written in parts
    std::printf("launch %s %u %u %u %u %u %u %u %p %d", symbol, x, y, z, bx, by, bz, shared, stream,
                extra != nullptr);
    for (int at = 0; at < count; ++at)
        std::printf(" %llx",
                    static_cast<unsigned long long>(*static_cast<std::uint64_t*>(parameters[at])));
    std::printf("\n");
    funlockfile(stdout);
    return status("cuLaunchKernel");
}
}
