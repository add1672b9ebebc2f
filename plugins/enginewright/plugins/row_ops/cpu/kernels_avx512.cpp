// The kernels for x86-64 with AVX-512 (F, BW, VL).

#include "avx512.h"
#include "rows.h"

namespace enginewright::row_ops {

extern const Kernels kAvx512 = kernels<Avx512>();

}  // namespace enginewright::row_ops
