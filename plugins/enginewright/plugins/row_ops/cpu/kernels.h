// What the kernels of the operators over rows take. Tensors: contract.py.
#pragma once

#include <cstddef>

namespace enginewright::row_ops {

// The kernels of one instruction set. A row is computed in one order, whatever batch it is in: its
// squares are summed in 16 lanes by their place, and the lanes in pairs.
struct Kernels {
    const char* name;
    // total = x + y, normed = total / sqrt(mean(total^2) + epsilon) * weight, k numbers each;
    // `total` may be `normed`, where the sum is not wanted.
    void (*add_rms_norm)(const float* x, const float* y, const float* weight, float epsilon,
                         size_t k, float* normed, float* total);
    // out = gate * sigmoid(gate) * up, k numbers each; gate_up is gate, then up.
    void (*swiglu)(const float* gate_up, size_t k, float* out);
    // The highest of every kPeak of n numbers (the last may have fewer), what is no number apart.
    void (*peaks)(const float* x, size_t n, float* peaks);
    // The sum of e^(x - highest) over n numbers; no number if one of them is not finite.
    double (*sum_of_exponentials)(const float* x, size_t n, float highest);
};

constexpr size_t kPeak = 64;

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace enginewright::row_ops
