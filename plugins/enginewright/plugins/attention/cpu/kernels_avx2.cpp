// The kernels for x86-64 with AVX2, FMA and F16C.

#include "attend.h"
#include "avx2.h"

namespace enginewright::attention {

extern const KernelSet kAvx2 = kernel_set<Avx2>();

}  // namespace enginewright::attention
