// The kernels for any processor.

#include "portable.h"
#include "rows.h"

namespace enginewright::row_ops {

extern const Kernels kPortable = kernels<Portable>();

}  // namespace enginewright::row_ops
