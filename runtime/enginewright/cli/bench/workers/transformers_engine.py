"""The Hugging Face model in fp32, for measure.py; ``model`` is its folder.

Quality is held to what it says.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM


class Engine:
    """See measure.py; it only scores."""

    def __init__(self, model: str, threads: int, rows: int, context: int, reuse: bool) -> None:
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def score(self, ids: list[int]) -> Any:
        with torch.inference_mode():
            return self._model(input_ids=torch.tensor([ids])).logits[0].numpy()
