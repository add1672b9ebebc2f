"""A GGUF file: weights, config, tokenizer and chat template in one."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from enginewright.builder.source.base import Origin, Source, SourceFiles
from enginewright.builder.source.gguf_family import GGUF_FAMILIES, GgufFamily
from enginewright.builder.source.gguf_file import GgufFile, open_gguf
from enginewright.builder.source.gguf_tokenizer import gguf_tokenizer
from enginewright.builder.source.gguf_weight import SUPPORTED, gguf_weight
from enginewright.builder.source.quiet import quiet_transformers
from enginewright.builder.weights import RowPermutedWeight, Weight, transposed
from enginewright.runtime.errors import SourceError, UnsupportedModelError

_IN_CONFIG = frozenset({"rope_freqs.weight"})  # tensors that the config says in other words


class GgufSource(Source):
    """One file; blocks of 4 and 8 bits stay as they are stored."""

    def reference_model(self) -> PreTrainedModel:
        """As transformers loads the file, dequantized to float32."""
        path = self.origin.location
        # its bar over tensors goes to stderr whatever transformers' settings say
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                config=self.model_config(),
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                local_files_only=True,
            )
        reference: PreTrainedModel = model.eval()
        return reference


class NormWeight(Weight):
    """A norm's weight of which one is taken away: Gemma's modules add it back."""

    def __init__(self, stored: Weight) -> None:
        super().__init__(stored.shape)
        self._stored = stored

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._stored.rows(start, stop) - np.float32(1)


def open_gguf_source(path: Path, origin: Origin | None = None) -> GgufSource:
    """Open a file; raises SourceError or UnsupportedModelError for one that cannot be built."""
    file = open_gguf(path)
    family = GGUF_FAMILIES.get(file.architecture)
    if family is None:
        raise UnsupportedModelError(
            f"{path}: architecture {file.architecture!r}; of GGUF files {', '.join(GGUF_FAMILIES)} "
            f"are built"
        )
    config = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **family.config(file),
    }
    return GgufSource(
        origin or Origin("gguf", path.name, path),
        config,
        _weights(file, family),
        SourceFiles({"model.gguf": path}, frozenset({"model.gguf"})),
        gguf_tokenizer(file),
    )


def _weights(file: GgufFile, family: GgufFamily) -> dict[str, Weight]:
    layers = file.need("block_count")
    weights: dict[str, Weight] = {}
    for name, tensor in file.tensors.items():
        parameter = family.parameter(name, layers)
        if parameter is None:
            if name in _IN_CONFIG:
                continue
            raise UnsupportedModelError(
                f"{file.path}: {family.architecture} has no place for the tensor {name}"
            )
        if tensor.type not in SUPPORTED:
            raise UnsupportedModelError(
                f"{file.path}: {name} is stored as {tensor.type.name}; read are "
                f"{', '.join(sorted(kind.name for kind in SUPPORTED))}"
            )
        weights[parameter] = _undo(file, family, name, gguf_weight(tensor))
    return weights


def _undo(file: GgufFile, family: GgufFamily, name: str, weight: Weight) -> Weight:
    """Take back what llama.cpp's converter did to a tensor."""
    stem, _, suffix = name.rpartition(".")
    stem = stem.rpartition(".")[2]
    if stem in family.reordered:
        heads = file.need("attention.head_count")
        if stem == "attn_k":
            heads = file.get("attention.head_count_kv", heads)
        if weight.shape[0] % (2 * heads):
            raise SourceError(f"{file.path}: damaged: {name} has {weight.shape[0]} rows")
        return RowPermutedWeight(weight, _half_rotated(weight.shape[0], heads))
    if stem in family.transposed and suffix == "weight":
        return transposed(weight)
    if family.norms_plus_one and stem.endswith("norm"):
        return NormWeight(weight)
    return weight


def _half_rotated(rows: int, heads: int) -> NDArray[np.intp]:
    """GGUF keeps the pairs of a rotation side by side, Hugging Face half a head apart."""
    order = np.arange(rows).reshape(heads, rows // heads // 2, 2)
    return np.ascontiguousarray(order.swapaxes(1, 2)).reshape(-1)
