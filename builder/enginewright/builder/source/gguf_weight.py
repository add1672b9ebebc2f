"""Weights of a GGUF file: dequantized by rows, and as exact blocks where the format has blocks.

| type | block | exact blocks as                                                             |
|------|-------|-----------------------------------------------------------------------------|
| Q4_0 | 32    | 4 bits; value = d (q - 8)                                                   |
| Q4_1 | 32    | 4 bits; value = d q + m: zero point 0, offset m                             |
| Q8_0 | 32    | 8 bits; value = d q with signed q: code q + 128                             |
| Q4_K | 32    | 4 bits; value = (d s) q - dmin m of each sub-block: zero point 0, an offset |

All other quantized types are dequantized by the gguf package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from numpy.typing import NDArray

from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.safetensors_file import StoredWeight
from enginewright.builder.weights import Blocks, StoredForm, Weight

_PLAIN = {Type.F64: "<f8", Type.F32: "<f4", Type.F16: "<f2", Type.BF16: "<u2"}
_DEQUANTIZED = frozenset(
    {Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K}
    | {Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S}
    | {Type.IQ3_XXS, Type.IQ3_S, Type.IQ1_S, Type.IQ1_M, Type.TQ1_0, Type.TQ2_0, Type.MXFP4}
)
SUPPORTED = frozenset(_PLAIN) | _DEQUANTIZED
_BLOCK = 32
_GROUP = 256


class GgufWeight(Weight):
    """A tensor stored in blocks along its last axis."""

    def __init__(self, tensor: GgufTensor) -> None:
        super().__init__(tensor.shape)
        self._tensor = tensor

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = dequantize(self._tensor.data[start:stop], self._tensor.type)
        return values

    def blocks(self) -> Blocks | None:
        split = _BLOCKS.get(self._tensor.type)
        return None if split is None or len(self.shape) != 2 else split(self._tensor.data)

    def stored_form(self) -> StoredForm | None:
        return _FORMS.get(self._tensor.type) if len(self.shape) == 2 else None


def gguf_weight(tensor: GgufTensor) -> Weight:
    """The weight of a stored tensor whose type is SUPPORTED."""
    plain = _PLAIN.get(tensor.type)
    if plain is not None:
        return StoredWeight(tensor.data.view(plain), bfloat16=tensor.type is Type.BF16)
    return GgufWeight(tensor)


def _q4_0(data: NDArray[np.uint8]) -> Blocks:
    scales, packed = _blocks_of(data, 2, 16)
    return Blocks(4, _BLOCK, lambda: _nibbles(packed), _half(scales, 0))


def _q4_1(data: NDArray[np.uint8]) -> Blocks:
    halves, packed = _blocks_of(data, 4, 16)
    scales = _half(halves, 0)
    offsets = _half(halves, 1)
    return Blocks(4, _BLOCK, lambda: _nibbles(packed), scales, None, offsets, uniform_zero=0)


def _q8_0(data: NDArray[np.uint8]) -> Blocks:
    scales, packed = _blocks_of(data, 2, 32)
    rows = data.shape[0]
    return Blocks(8, _BLOCK, lambda: (packed ^ np.uint8(128)).reshape(rows, -1), _half(scales, 0))


def _q4_k(data: NDArray[np.uint8]) -> Blocks:
    rows = data.shape[0]
    groups = data.reshape(rows, -1, 4 + 12 + _GROUP // 2)
    scale, least = (_half(groups[..., :4], part)[..., None] for part in range(2))
    factors, minima = _six_bits(groups[..., 4:16])
    scales = (scale * factors.astype(np.float32)).reshape(rows, -1)
    offsets = -(least * minima.astype(np.float32)).reshape(rows, -1)
    # 32 bytes hold two sub-blocks: the low halves one, the high halves the next
    packed = groups[..., 16:].reshape(rows, -1, _BLOCK)
    return Blocks(4, _BLOCK, lambda: _nibbles(packed), scales, None, offsets, uniform_zero=0)


_BLOCKS: Mapping[Type, Callable[[NDArray[np.uint8]], Blocks]] = {
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q8_0: _q8_0,
    Type.Q4_K: _q4_k,
}
_FORMS: Mapping[Type, StoredForm] = {
    Type.Q4_0: StoredForm(4, _BLOCK),
    Type.Q4_1: StoredForm(4, _BLOCK, offsets=True),
    Type.Q8_0: StoredForm(8, _BLOCK),
    Type.Q4_K: StoredForm(4, _BLOCK, offsets=True, wide=True),
}


def _blocks_of(
    data: NDArray[np.uint8], head: int, body: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Rows [N, bytes] -> the leading bytes of each block, and the codes behind them."""
    blocks = data.reshape(data.shape[0], -1, head + body)
    return blocks[..., :head], blocks[..., head:]


def _half(raw: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
    """The index-th float16 of the last axis."""
    part = np.ascontiguousarray(raw[..., 2 * index : 2 * index + 2])
    return part.view("<f2")[..., 0].astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, blocks, bytes] -> [N, K]: the low halves of a block's bytes, then the high ones."""
    halves = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return halves.reshape(packed.shape[0], -1)


def _six_bits(raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Twelve bytes -> eight scales and eight minima of six bits."""
    first, second, rest = (raw[..., 4 * part : 4 * part + 4] for part in range(3))
    low, top = np.uint8(15), np.uint8(6)
    scales = [first & np.uint8(63), (rest & low) | ((first >> top) << np.uint8(4))]
    minima = [second & np.uint8(63), (rest >> np.uint8(4)) | ((second >> top) << np.uint8(4))]
    return np.concatenate(scales, axis=-1), np.concatenate(minima, axis=-1)
