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
    PackedModule,
    groups_of,
    settings_of,
    unpack_modules,
    unpack_words,
)
from enginewright.builder.source.safetensors_file import StoredWeight
from enginewright.builder.weights import Weight
from enginewright.runtime.errors import UnsupportedModelError

# Output 8 w + i of a row lies in the _POSITION[i]-th four bits of word w, lowest first.
_POSITION = np.array([0, 4, 1, 5, 2, 6, 3, 7])


class AwqWeight(Int4Weight):
    """One packed matrix."""

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
    return unpack_modules(stored, where, lambda module: _weight(module, size))


def _weight(module: PackedModule, size: int) -> AwqWeight:
    inputs, outputs = module.words.shape[0], module.words.shape[1] * PER_WORD
    count, groups = groups_of(inputs, size)
    scales = module.scales(count, outputs)
    packed = module.part("qzeros", count, outputs // PER_WORD)
    return AwqWeight(module.words, scales, _outputs(packed), groups)


def _outputs(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Packed words [R, W] -> codes [R, 8 W] in the order of outputs."""
    return unpack_words(words)[..., _POSITION].reshape(words.shape[0], -1)
