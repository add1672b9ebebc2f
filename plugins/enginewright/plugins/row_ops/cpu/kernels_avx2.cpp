// The kernels for x86-64 with AVX2, FMA and F16C.

#include "avx2.h"
#include "rows.h"

namespace enginewright::row_ops {

extern const Kernels kAvx2 = kernels<Avx2>();

}  // namespace enginewright::row_ops
