"""The ABI of ``enginewright::AddRMSNorm``, ``SwiGLU`` and ``TopLogits``, version 1.

| tensor           | shape      | dtype   | meaning                                               |
|------------------|------------|---------|-------------------------------------------------------|
| x, y             | [..., K]   | float32 | AddRMSNorm: the summands                              |
| weight           | [K]        | float32 |                                                       |
| *normed*         | [..., K]   | float32 | total / sqrt(mean(total^2) + epsilon) * weight        |
| *total*          | [..., K]   | float32 | optional: x + y                                       |
| gate_up          | [..., 2 K] | float32 | SwiGLU: gate [..., K], then up [..., K]               |
| *out*            | [..., K]   | float32 | gate * sigmoid(gate) * up                             |
| logits           | [L, V]     | float32 | TopLogits                                             |
| *top_logits*     | [L, k]     | float32 | the highest of each row, highest first                |
| *top_ids*        | [L, k]     | int32   | where they are; of equals the first                   |
| *log_normalizer* | [L]        | float32 | log(sum(exp(row))); not finite where the row has a    |
|                  |            |         | value that is none                                    |

A row is computed in float32 in one order, whatever batch it is in. AddRMSNorm has the attribute
epsilon; TopLogits has k, 1 to 256 and no more than V, and passes over NaN: a row with fewer than k
numbers ends in logits of -inf with id 0. A changed meaning is a new ``ABI_VERSION``, which is the
version of the operators.
"""

from __future__ import annotations

DOMAIN = "enginewright"
ADD_RMS_NORM = "AddRMSNorm"
SWIGLU = "SwiGLU"
TOP_LOGITS = "TopLogits"
ABI_VERSION = 1
