"""GPTQ checkpoints of 4 bits, carried over exactly.

| array   | shape      | dtype | meaning                                                        |
|---------|------------|-------|----------------------------------------------------------------|
| qweight | [K / 8, N] | int32 | eight inputs a word, lowest bits first                         |
| qzeros  | [G, N / 8] | int32 | eight outputs a word; format gptq stores the zero minus one,   |
|         |            |       | modulo 16, format gptq_v2 the zero itself                      |
| scales  | [G, N]     | fp16  |                                                                |
| g_idx   | [K]        | int32 | the group of each input; not in order under desc_act           |

With ``desc_act`` the inputs of a group do not lie side by side: values are exact in float32, and
``ordered_blocks`` gives the blocks together with the order of inputs that makes them so.
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
from enginewright.runtime.errors import SourceError, UnsupportedModelError

_FORMATS = ("gptq", "gptq_v2")


class GptqWeight(Int4Weight):
    """One packed matrix."""

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        unpacked = unpack_words(np.ascontiguousarray(self._words[:, start:stop].T))
        return unpacked.reshape(unpacked.shape[0], -1)


def unpack(
    stored: Mapping[str, StoredWeight], settings: Mapping[str, Any], where: str
) -> dict[str, Weight]:
    """Stored tensors -> weights, packed modules as one weight each."""
    size = settings_of(settings, where)
    form = settings.get("checkpoint_format", "gptq")
    if form not in _FORMATS:
        raise UnsupportedModelError(
            f"{where}: GPTQ in checkpoint_format {form!r}; built are {', '.join(_FORMATS)}"
        )
    changed = [key for key in settings.get("dynamic") or {} if not key.startswith("-:")]
    if changed:
        raise UnsupportedModelError(
            f"{where}: quantization_config.dynamic gives modules their own settings "
            f"({changed[0]}); only one setting for all packed modules is built"
        )
    offset = 0 if form == "gptq_v2" else 1
    return unpack_modules(stored, where, lambda module: _weight(module, size, offset))


def _weight(module: PackedModule, size: int, offset: int) -> GptqWeight:
    inputs, outputs = module.words.shape[0] * PER_WORD, module.words.shape[1]
    count, groups = groups_of(inputs, size)
    scales = module.scales(count, outputs)
    packed = module.part("qzeros", count, outputs // PER_WORD)
    zeros = (unpack_words(packed).reshape(count, outputs) + np.uint8(offset)) & np.uint8(15)
    if "g_idx" in module:
        groups = module.part("g_idx", inputs)
        if groups.min() < 0 or groups.max() >= count:
            raise SourceError(
                f"{module.where}: {module.name}.g_idx names groups outside 0..{count - 1}"
            )
    return GptqWeight(module.words, scales, zeros, groups)
