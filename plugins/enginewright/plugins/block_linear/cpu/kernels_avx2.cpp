// The kernels for x86-64 with AVX2, FMA and F16C.

#include "tiles.h"

namespace enginewright {

const Kernels kAvx2 = kernels<OneRow>("avx2");

}  // namespace enginewright
