"""The ABI of ``enginewright::AddRMSNorm`` and ``enginewright::SwiGLU``, version 1.

| tensor    | shape      | dtype   | meaning                                                     |
|-----------|------------|---------|-------------------------------------------------------------|
| x, y      | [..., K]   | float32 | AddRMSNorm: the summands                                    |
| weight    | [K]        | float32 |                                                             |
| *normed*  | [..., K]   | float32 | total / sqrt(mean(total^2) + epsilon) * weight, of each row |
| *total*   | [..., K]   | float32 | optional: x + y                                             |
| gate_up   | [..., 2 K] | float32 | SwiGLU: gate [..., K], then up [..., K]                     |
| *out*     | [..., K]   | float32 | gate * sigmoid(gate) * up                                   |

A row is computed in float32 in one order, whatever batch it is in. AddRMSNorm has the attribute
epsilon. A changed meaning is a new ``ABI_VERSION``, which is the version of the operators.
"""

from __future__ import annotations

DOMAIN = "enginewright"
ADD_RMS_NORM = "AddRMSNorm"
SWIGLU = "SwiGLU"
ABI_VERSION = 1
