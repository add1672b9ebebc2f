"""A checkpoint of a tiny model, written as GGUF the way llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginewright.builder.weights import Blocks, Weight

MakeGguf = Callable[..., Path]
_TOKEN, _CONTROL = 1, 3


class _Stored(Weight):
    def __init__(self, blocks: Blocks) -> None:
        super().__init__(blocks.shape)
        self._blocks = blocks

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._blocks.dequantize()[start:stop]

    def blocks(self) -> Blocks:
        return self._blocks


@pytest.fixture(scope="session")
def stored_in() -> Callable[[Blocks], Weight]:
    """``stored_in(blocks)``: a weight that stands in these blocks."""
    return _Stored


@pytest.fixture(scope="session")
def make_gguf() -> MakeGguf:
    """``make_gguf(checkpoint, path, arch, metadata, types={}, extra={}, skip=()) -> path``.

    ``metadata`` are the keys of the architecture's section; ``types`` maps a part of a GGUF name to
    a quantized type, all else is F32; ``extra`` are further tensors; ``general`` further keys.
    """
    return _make_gguf


def _make_gguf(
    checkpoint: Path,
    path: Path,
    arch: str,
    metadata: Mapping[str, Any],
    *,
    types: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
    general: Mapping[str, Any] | None = None,
) -> Path:
    import gguf
    from gguf.quants import quantize

    writer = gguf.GGUFWriter(path, arch)
    for key, value in {f"{arch}.{k}": v for k, v in metadata.items()}.items():
        _add(writer, key, value)
    _add_tokenizer(writer, checkpoint)
    for key, value in (general or {}).items():
        _add(writer, key, value)
    for name, values in {**_tensors(checkpoint, arch), **(extra or {})}.items():
        kind = next((k for part, k in (types or {}).items() if part in name), None)
        if kind is None or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def _add_tokenizer(writer: Any, checkpoint: Path) -> None:
    model = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL] * 3 + [_TOKEN] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text("utf-8"))


def _tensors(checkpoint: Path, arch: str) -> dict[str, NDArray[np.float32]]:
    """The checkpoint's tensors under the gguf package's names, changed as llama.cpp does."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    layers = config.get("num_hidden_layers") or config["n_layer"]
    key = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(key, layers)
    tensors = {}
    for name, values in load_file(checkpoint / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        tensors[found] = np.ascontiguousarray(_converted(arch, found, values, config))
    return tensors


def _converted(
    arch: str, name: str, values: NDArray[np.float32], config: Mapping[str, Any]
) -> NDArray[np.float32]:
    stem, suffix = name.rsplit(".", 1)
    if arch == "llama" and stem.endswith((".attn_q", ".attn_k")):
        key = "num_attention_heads" if stem.endswith("q") else "num_key_value_heads"
        heads = config[key]
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if arch.startswith("gemma") and stem.endswith("norm"):
        return values + np.float32(1)
    transposed = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    if arch == "gpt2" and suffix == "weight" and stem.endswith(transposed):
        return values.T
    return values
