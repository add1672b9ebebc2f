// The kernels for any processor.

#include "attend.h"
#include "portable.h"

namespace enginewright::attention {

extern const KernelSet kPortable = kernel_set<Portable>();

}  // namespace enginewright::attention
