// The gated activation, for operators that compute a gate themselves.
#pragma once

#include "operators.h"

namespace enginewright {

// out = gate * sigmoid(gate) * up, k numbers each; gate_up is gate, then up.
void swiglu(InstructionSet instructions, const float* gate_up, size_t k, float* out);

}  // namespace enginewright
