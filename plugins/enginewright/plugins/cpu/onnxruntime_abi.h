// The part of ONNX Runtime's C interface that an operator library needs.
//
// The interface is a table of functions that only ever grows at its end, so an operator needs no
// more than the places and types of those that it calls. Places as of version 17 of the interface;
// a runtime that is older has no ParallelFor and does not give that version.
#pragma once

#include <cstddef>
#include <cstdint>

namespace enginewright::ort {

constexpr uint32_t kVersion = 17;

struct Status;
struct Domain;
struct SessionOptions;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

struct ApiBase {
    const void* (*get_api)(uint32_t version);
    const char* (*get_version)();
};

enum ElementType : int {
    kUndefined = 0,
    kFloat = 1,
    kUint8 = 2,
    kInt8 = 3,
    kInt32 = 6,
    kFloat16 = 10
};
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

class Api {
  public:
    explicit Api(const void* table) : table_(static_cast<void* const*>(table)) {}

    Status* create_status(ErrorCode code, const char* message) const {
        return at<Status*(int, const char*)>(0)(code, message);
    }
    Status* create_domain(const char* name, Domain** out) const {
        return at<Status*(const char*, Domain**)>(26)(name, out);
    }
    Status* add_operator(Domain* domain, const void* op) const {
        return at<Status*(Domain*, const void*)>(27)(domain, op);
    }
    Status* add_domain(SessionOptions* options, Domain* domain) const {
        return at<Status*(SessionOptions*, Domain*)>(28)(options, domain);
    }
    Status* data(Value* value, void** out) const {
        return at<Status*(Value*, void**)>(51)(value, out);
    }
    Status* element_type(const TensorInfo* info, ElementType* out) const {
        return at<Status*(const TensorInfo*, ElementType*)>(60)(info, out);
    }
    Status* rank(const TensorInfo* info, size_t* out) const {
        return at<Status*(const TensorInfo*, size_t*)>(61)(info, out);
    }
    Status* dimensions(const TensorInfo* info, int64_t* out, size_t rank) const {
        return at<Status*(const TensorInfo*, int64_t*, size_t)>(62)(info, out, rank);
    }
    Status* element_count(const TensorInfo* info, size_t* out) const {
        return at<Status*(const TensorInfo*, size_t*)>(64)(info, out);
    }
    Status* tensor_info(const Value* value, TensorInfo** out) const {
        return at<Status*(const Value*, TensorInfo**)>(65)(value, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, float* out) const {
        return at<Status*(const KernelInfo*, const char*, float*)>(85)(info, name, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
        return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
    }
    Status* input(const KernelContext* context, size_t index, const Value** out) const {
        return at<Status*(const KernelContext*, size_t, const Value**)>(90)(context, index, out);
    }
    Status* output(KernelContext* context, size_t index, const int64_t* shape, size_t rank,
                   Value** out) const {
        return at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(
            context, index, shape, rank, out);
    }
    void release(Status* status) const { at<void(Status*)>(93)(status); }
    void release(TensorInfo* info) const { at<void(TensorInfo*)>(99)(info); }
    // An entry of a session's configuration, with its final 0, into `size` bytes; an error where
    // there is none, or no room for it.
    Status* config_entry(const SessionOptions* options, const char* key, char* out,
                         size_t* size) const {
        return at<Status*(const SessionOptions*, const char*, char*, size_t*)>(238)(options, key,
                                                                                    out, size);
    }
    // constant: 0 unless the input is one of the graph's constants, which stay where they are.
    Status* constant_input(const KernelInfo* info, size_t index, int* constant,
                           const Value** out) const {
        return at<Status*(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index,
                                                                                constant, out);
    }
    // Runs f(argument, i) for all i < total on the session's threads, in at most `parts` runs of
    // neighbours; 0 sets no limit.
    Status* parallel_for(const KernelContext* context, void (*f)(void*, size_t), size_t total,
                         size_t parts, void* argument) const {
        return at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
            274)(context, f, total, parts, argument);
    }

  private:
    template <class Function>
    Function* at(size_t place) const {
        return reinterpret_cast<Function*>(table_[place]);
    }

    void* const* table_;
};

// What the runtime calls of an operator; entries that stay null are for versions above kVersion.
struct Operator {
    uint32_t version;
    void* (*create)(const Operator*, const void* api, const KernelInfo*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);
    ElementType (*input_type)(const Operator*, size_t);
    size_t (*input_count)(const Operator*);
    ElementType (*output_type)(const Operator*, size_t);
    size_t (*output_count)(const Operator*);
    void (*compute)(void* kernel, KernelContext*);
    void (*destroy)(void* kernel);
    Characteristic (*input_characteristic)(const Operator*, size_t);
    Characteristic (*output_characteristic)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);
    int (*variadic_input_minimum)(const Operator*);
    int (*variadic_input_homogeneous)(const Operator*);
    int (*variadic_output_minimum)(const Operator*);
    int (*variadic_output_homogeneous)(const Operator*);
    Status* (*create_checked)(const Operator*, const void* api, const KernelInfo*, void** kernel);
    Status* (*compute_checked)(void* kernel, KernelContext*);
    Status* (*infer_shape)(const Operator*, void*);
    int (*start_version)(const Operator*);
    int (*end_version)(const Operator*);
    void* in_place[4];
};

}  // namespace enginewright::ort
