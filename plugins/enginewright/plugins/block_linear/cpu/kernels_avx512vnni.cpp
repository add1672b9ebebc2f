// The kernels for x86-64 with AVX-512 and its VNNI.

#include "two_rows.h"

namespace enginewright {

const Kernels kAvx512Vnni = kernels<TwoRows>("avx512vnni");

}  // namespace enginewright
