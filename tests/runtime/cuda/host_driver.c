/* A CUDA driver whose device is the host's own memory, for tests where there is no GPU.
 *
 * cuda-bindings loads it as libcuda.so.1. What is queued runs at once, or, while a stream is
 * captured, is recorded and runs when the graph is launched. Host functions run as they are; every
 * kernel does one thing: it tells what it was launched with, see cuLaunchKernel.
 * HOST_DRIVER_DEVICES and HOST_DRIVER_MEMORY say how many devices there are and how much each has.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500 };

typedef struct {
    size_t src_x, src_y;
    unsigned src_type;
    const void *src_host;
    uint64_t src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    unsigned dst_type;
    void *dst_host;
    uint64_t dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
} Copy2D;

typedef struct {
    void (*function)(void *);
    uint64_t to, from;
    size_t size, rows, to_pitch, from_pitch;
    int value; /* -1: copy, -2: call, else set bytes to it */
} Operation;

typedef struct {
    size_t count;
    Operation operations[1024];
} Graph;

static size_t used;
static Graph *capturing;

static size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void run(const Operation *each) {
    if (each->value == -2) {
        each->function((void *)each->to);
    } else if (each->value >= 0) {
        memset((void *)each->to, each->value, each->size);
    } else {
        for (size_t row = 0; row < each->rows; row++)
            memmove((char *)each->to + row * each->to_pitch,
                    (char *)each->from + row * each->from_pitch, each->size);
    }
}

static Result queue(Operation each) {
    if (!capturing) {
        run(&each);
    } else if (capturing->count == 1024) {
        return INVALID;
    } else {
        capturing->operations[capturing->count++] = each;
    }
    return OK;
}

static Result copy(uint64_t to, uint64_t from, size_t size) {
    return queue((Operation){.to = to, .from = from, .size = size, .rows = 1, .value = -1});
}

Result cuGetProcAddress(const char *name, void **found, int version, uint64_t flags, int *status) {
    *found = dlsym(RTLD_DEFAULT, name);
    if (status)
        *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
Result cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    return cuGetProcAddress(name, found, version, flags, status);
}

Result cuInit(unsigned flags) { return setting("HOST_DRIVER_DEVICES", 1) ? OK : NO_DEVICE; }
Result cuDriverGetVersion(int *version) { return *version = 13000, OK; }
Result cuDeviceGetCount(int *count) { return *count = (int)setting("HOST_DRIVER_DEVICES", 1), OK; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
Result cuDeviceGetName(char *name, int size, int device) { return strncpy(name, "host", size), OK; }
Result cuDeviceGetAttribute(int *value, int which, int device) {
    return *value = which == 75 ? 8 : 6, OK;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &used, OK; }
Result cuDevicePrimaryCtxRelease(int device) { return OK; }
Result cuCtxSetCurrent(void *context) { return OK; }
Result cuMemGetInfo(size_t *available, size_t *total) {
    *total = setting("HOST_DRIVER_MEMORY", (size_t)1 << 30);
    return *available = *total - used, OK;
}

/* The size stands in front of what is handed out, which is filled with what nobody wrote. */
Result cuMemAlloc(uint64_t *address, size_t size) {
    if (used + size > setting("HOST_DRIVER_MEMORY", (size_t)1 << 30))
        return NO_MEMORY;
    char *memory = aligned_alloc(256, 256 + (size + 255) / 256 * 256);
    memset(memory, 0xff, 256 + size);
    *(size_t *)memory = size;
    used += size;
    return *address = (uint64_t)(memory + 256), OK;
}
Result cuMemFree(uint64_t address) {
    char *memory = (char *)address - 256;
    used -= *(size_t *)memory;
    return free(memory), OK;
}
Result cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    return *address = aligned_alloc(256, (size + 255) / 256 * 256), OK;
}
Result cuMemFreeHost(void *address) { return free(address), OK; }

Result cuStreamCreate(void **stream, unsigned flags) { return *stream = malloc(1), OK; }
Result cuStreamDestroy(void *stream) { return free(stream), OK; }
Result cuStreamSynchronize(void *stream) { return capturing ? 900 : OK; }
Result cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t size, void *stream) {
    return copy(to, (uint64_t)from, size);
}
Result cuMemcpyDtoHAsync(void *to, uint64_t from, size_t size, void *stream) {
    return copy((uint64_t)to, from, size);
}
Result cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t size, void *stream) {
    return copy(to, from, size);
}
Result cuMemcpy2DAsync(const Copy2D *c, void *stream) {
    return queue((Operation){.to = c->dst_device, .from = c->src_device, .size = c->width,
                             .rows = c->height, .to_pitch = c->dst_pitch,
                             .from_pitch = c->src_pitch, .value = -1});
}
Result cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void *stream) {
    return queue((Operation){.to = address, .size = size, .value = value});
}
Result cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    return queue((Operation){.function = function, .to = (uint64_t)data, .value = -2});
}

static int allowed_shared;
Result cuModuleLoadData(void **module, const void *image) {
    return *module = strdup(image), OK;
}
Result cuModuleUnload(void *module) { return free(module), OK; }
/* A module holds the one function whose name is its code. */
Result cuModuleGetFunction(void **function, void *module, const char *name) {
    return *function = module, strcmp(module, name) ? NOT_FOUND : OK;
}
Result cuFuncSetAttribute(void *function, int which, int value) {
    return allowed_shared = which == 8 ? value : 0, OK;
}
/* Parameters: a pointer to 10 numbers of 64 bits, an int32, a float, and two pointers. */
Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void *stream,
                      void **parameters, void **extra) {
    int64_t *told = *(int64_t **)parameters[0];
    int64_t launch[] = {x, y, z, block_x, shared, allowed_shared};
    memcpy(told, launch, sizeof launch);
    told[6] = *(int32_t *)parameters[1];
    told[7] = (int64_t)(1000 * *(float *)parameters[2]);
    told[8] = *(int64_t *)parameters[3];
    told[9] = *(int64_t *)parameters[4];
    return block_y == 1 && block_z == 1 ? OK : INVALID;
}

Result cuStreamBeginCapture(void *stream, int mode) {
    return capturing = calloc(1, sizeof(Graph)), OK;
}
Result cuStreamEndCapture(void *stream, void **graph) {
    return *graph = capturing, capturing = NULL, OK;
}
Result cuGraphInstantiate(void **executable, void *graph, uint64_t flags) {
    *executable = malloc(sizeof(Graph));
    return memcpy(*executable, graph, sizeof(Graph)), OK;
}
Result cuGraphInstantiateWithFlags(void **executable, void *graph, uint64_t flags) {
    return cuGraphInstantiate(executable, graph, flags);
}
Result cuGraphLaunch(void *executable, void *stream) {
    Graph *graph = executable;
    for (size_t i = 0; i < graph->count; i++)
        run(&graph->operations[i]);
    return OK;
}
Result cuGraphDestroy(void *graph) { return free(graph), OK; }
Result cuGraphExecDestroy(void *executable) { return free(executable), OK; }
