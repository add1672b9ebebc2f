"""AWQ checkpoints of 4 bits in the gemm layout, carried over exactly.

| array   | shape      | dtype | meaning                                               |
|---------|------------|-------|-------------------------------------------------------|
| qweight | [K, N / 8] | int32 | eight outputs a word, interleaved: see _POSITION      |
| qzeros  | [G, N / 8] | int32 | packed alike; the zero itself                         |
| scales  | [G, N]     | fp16  |                                                       |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.builder.source.int4 import (
    PER_WORD,
    Int4Weight,
    packed_modules,
    part_of,
    scales_of,
    settings_of,
    unpack_words,
)
from enginewright.builder.source.safetensors_file import StoredWeight
from enginewright.builder.weights import Weight
from enginewright.runtime.errors import UnsupportedModelError

# Output 8 w + i of a row lies in the _POSITION[i]-th four bits of word w, lowest first.
_POSITION = np.array([0, 4, 1, 5, 2, 6, 3, 7])


class AwqWeight(Int4Weight):
    """One packed matrix."""

    def __init__(
        self,
        words: NDArray[np.int32],
        scales: NDArray[np.float32],
        zeros: NDArray[np.uint8],
        groups: NDArray[np.integer[Any]],
    ) -> None:
        super().__init__(scales, zeros, groups)
        self._words = words

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        first, last = start // PER_WORD, -(-stop // PER_WORD)
        unpacked = _outputs(self._words[:, first:last])
        skipped = first * PER_WORD
        return np.ascontiguousarray(unpacked[:, start - skipped : stop - skipped].T)


def unpack(
    stored: Mapping[str, StoredWeight], settings: Mapping[str, Any], where: str
) -> dict[str, Weight]:
    """Stored tensors -> weights, packed modules as one weight each."""
    size = settings_of(settings, where)
    stated = [
        settings[key] for key in ("version", "format", "checkpoint_format") if settings.get(key)
    ]
    for layout in stated:
        if str(layout).lower() != "gemm":
            raise UnsupportedModelError(
                f"{where}: AWQ in the layout {layout!r}; built is gemm, the default of AutoAWQ"
            )
    weights: dict[str, Weight] = dict(stored)
    for module, words in packed_modules(stored, where).items():
        weight = _weight(stored, module, words, size, where)
        for part in ("qweight", "qzeros", "scales"):
            weights.pop(f"{module}.{part}", None)
        weights[f"{module}.weight"] = weight
    return weights


def _weight(
    stored: Mapping[str, StoredWeight],
    module: str,
    words: NDArray[np.int32],
    size: int,
    where: str,
) -> AwqWeight:
    inputs, outputs = words.shape[0], words.shape[1] * PER_WORD
    size = inputs if size == -1 else size
    count = -(-inputs // size)
    scales = scales_of(stored, module, (count, outputs), where)
    packed = part_of(stored, module, "qzeros", (count, outputs // PER_WORD), where)
    return AwqWeight(words, scales, _outputs(packed), np.arange(inputs) // size)


def _outputs(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Packed words [R, W] -> codes [R, 8 W] in the order of outputs."""
    return unpack_words(words)[..., _POSITION].reshape(words.shape[0], -1)
