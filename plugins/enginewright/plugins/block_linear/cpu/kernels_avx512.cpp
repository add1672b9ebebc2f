// The kernels for x86-64 with AVX-512 (F, BW, VL, DQ).

#include "two_rows.h"

namespace enginewright {

const Kernels kAvx512 = kernels<TwoRows>("avx512");

}  // namespace enginewright
