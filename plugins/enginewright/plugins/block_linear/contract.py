"""The ABI of ``enginewright::BlockLinear``, version 1: y = x W^T + bias, W in blocks along K.

| tensor      | shape                            | dtype   | meaning                               |
|-------------|----------------------------------|---------|---------------------------------------|
| x           | [..., K]                         | float32 | activations                           |
| codes       | [N, K / block, block * bits / 8] | uint8   | 4 bits: lower half of a byte first    |
| scales      | [N, K / block]                   | T       | W = scale * (code - zero) + offset    |
| zero_points | [N, ceil(K / block * bits / 8)]  | uint8   | optional, as codes; else all `zero`   |
| offsets     | [N, K / block]                   | T       | optional, else 0                      |
| bias        | [N]                              | float32 | optional, else 0                      |
| *y*         | [..., N]                         | float32 | [..., N / 2] if gated                 |

T is float16 or float32; codes may have any shape of as many elements. x is rounded to the nearest,
ties to even. Against 8-bit codes to 16 bits: the scale of a row (its largest magnitude / 32767)
times a code. Against 4-bit codes to 8 bits in groups of 16 along K: the scale of a row (its largest
magnitude / 127 / 32767) times an integer of each group, the least that does, times a code. A row
whose scale is not above 1e-36 counts as 0; one that holds NaN or an infinity gives NaN. The product
of what was rounded is exact up to float32 sums, and a row's result does not depend on other rows.

A processor that multiplies tiles of bfloat16 (AMX) may use them against 4-bit codes, and against
8-bit ones if the attribute ``bfloat16`` is 1: then x is rounded to that, W is made larger by
3/1024 and cut (towards 0) to it, and a row that holds an infinity gives no finite number. How they
round may change within a version.

If the attribute ``gated`` is 1, the first half of the product's columns are a gate and y is
gate * sigmoid(gate) times the other half, as SwiGLU (row_ops/contract.py) has it.

Attributes: N, K, bits (4 or 8), block_size (a power of two, 16 to 256, that divides K), zero, and
optionally bfloat16 and gated (0 or 1).
A changed meaning is a new ``ABI_VERSION``, which is the version of the operator.
"""

from __future__ import annotations

DOMAIN = "enginewright"
OP_TYPE = "BlockLinear"
ABI_VERSION = 1
INPUTS = ("x", "codes", "scales", "zero_points", "offsets", "bias")
BFLOAT16 = "bfloat16"
GATED = "gated"
GROUP = 16
LARGEST_BYTE = 127
LARGEST_WORD = 32767
SMALLEST_SCALE = 1e-36
