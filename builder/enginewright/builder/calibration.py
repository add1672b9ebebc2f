"""Scales of a quantized cache: how large keys and values of each head grow on some texts.

| result               | shape      | dtype   | meaning                                     |
|----------------------|------------|---------|---------------------------------------------|
| k_cache.i, v_cache.i | [kv_heads] | float32 | what a step of the stored number stands for |

Keys are taken as they are cached: after rotary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The largest magnitude that each type stores; fp8 is e4m3."""
MARGIN = 1.1
"""Keys and values of other texts are somewhat larger; what still exceeds it saturates."""


def kv_scales(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], dtype: Literal["int8", "fp8"]
) -> dict[str, NDArray[np.float32]]:
    """Run the model over windows of token ids; see the module's table.

    A head that is 0 on all of them gets the scale 1.
    """
    largest: dict[str, NDArray[np.float32]] = {}
    for window in windows:
        for name, tensor in _caches(model, window):
            found = tensor.abs().amax(dim=(0, 2, 3)).numpy()
            largest[name] = np.maximum(largest.get(name, found), found)
    step = MARGIN / LARGEST[dtype]
    return {
        name: np.where(found > 0, found * step, 1).astype(np.float32)
        for name, found in largest.items()
    }


@torch.inference_mode()
def _caches(model: PreTrainedModel, window: Sequence[int]) -> list[tuple[str, torch.Tensor]]:
    """Keys and values [1, kv_heads, S, D] of each layer by the cache's name."""
    output: Any = model(input_ids=torch.tensor([list(window)]), use_cache=True)
    layers = output.past_key_values.layers
    return [
        (f"{kind}_cache.{at}", tensor.float())
        for at, layer in enumerate(layers)
        for kind, tensor in (("k", layer.keys), ("v", layer.values))
    ]
