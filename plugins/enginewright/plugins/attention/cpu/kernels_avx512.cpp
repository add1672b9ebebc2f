// The kernels for x86-64 with AVX-512 (F, BW, VL).

#include "attend.h"
#include "avx512.h"

namespace enginewright::attention {

extern const KernelSet kAvx512 = kernel_set<Avx512>();

}  // namespace enginewright::attention
