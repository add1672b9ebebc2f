// The kernels for x86-64 with AVX2, FMA, F16C and AVX-VNNI.

#include "tiles.h"

namespace enginewright {

const Kernels kAvx2Vnni = kernels<OneRow>("avx2vnni");

}  // namespace enginewright
