"""A Hugging Face checkpoint folder: config.json, safetensors in one file or sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from enginewright.builder.source import awq, gptq
from enginewright.builder.source.base import Origin, Source, SourceFiles
from enginewright.builder.source.int4 import Int4Weight
from enginewright.builder.source.json_file import read_json
from enginewright.builder.source.quiet import quiet_transformers
from enginewright.builder.source.safetensors_file import StoredWeight, open_safetensors
from enginewright.builder.source.tokenizer import folder_tokenizer
from enginewright.builder.weights import Weight
from enginewright.runtime.errors import SourceError, UnsupportedModelError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    _INDEX,
)
_Unpack = Callable[[Mapping[str, StoredWeight], Mapping[str, Any], str], dict[str, Weight]]
QUANTIZATIONS: Mapping[str, _Unpack] = {"gptq": gptq.unpack, "awq": awq.unpack}
"""quant_method of the config -> what turns stored tensors into weights."""


class CheckpointSource(Source):
    """A folder as transformers saves it; quantized ones hold GPTQ or AWQ weights of 4 bits."""

    def reference_model(self) -> PreTrainedModel:
        """As transformers loads it; for quantized weights its model with our exact float32."""
        if any(isinstance(weight, Int4Weight) for weight in self.weights.values()):
            return self._filled_model()
        with quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.origin.location,
                config=self.model_config(),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
        reference: PreTrainedModel = model.eval()
        return reference

    def _filled_model(self) -> PreTrainedModel:
        auto: Any = AutoModelForCausalLM
        with no_init_weights():
            model = auto.from_config(self.model_config(), dtype=torch.float32)
        model.tie_weights()
        for name, parameter in model.named_parameters():
            parameter.detach().numpy()[...] = self.weight(name).numpy()
        reference: PreTrainedModel = model.eval()
        return reference


def open_checkpoint(folder: Path, origin: Origin | None = None) -> CheckpointSource:
    """Open a folder; raises SourceError or UnsupportedModelError for one that cannot be built."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder}: no checkpoint: it holds no config.json; a folder as transformers' "
            f"save_pretrained writes it is wanted, or a GGUF file as source.gguf"
        )
    config = read_json(folder / "config.json")
    quantization = config.pop("quantization_config", None)
    unpack = None if quantization is None else _unpacker(folder, quantization)
    weight_files = _weight_files(folder)
    tokenizer = folder_tokenizer(folder)
    stored = _stored(folder, weight_files)
    weights: Mapping[str, Weight] = stored
    if unpack is not None:
        weights = unpack(stored, quantization, str(folder))
    paths = {name: folder / name for name in (*_SMALL, *weight_files) if (folder / name).is_file()}
    return CheckpointSource(
        origin or Origin("checkpoint", folder.resolve().name, folder),
        config,
        weights,
        SourceFiles(paths, frozenset(weight_files)),
        tokenizer,
    )


def _unpacker(folder: Path, settings: Any) -> _Unpack:
    method = str(settings.get("quant_method") if isinstance(settings, Mapping) else settings)
    if method not in QUANTIZATIONS:
        raise UnsupportedModelError(
            f"{folder}: config.json says quantization_config.quant_method {method!r}; built are "
            f"{', '.join(QUANTIZATIONS)} and unquantized checkpoints"
        )
    return QUANTIZATIONS[method]


def _weight_files(folder: Path) -> dict[str, frozenset[str] | None]:
    """Files of weights, and the tensors that the index expects in each; None: no index."""
    if (folder / _SINGLE).is_file():
        return {_SINGLE: None}
    if not (folder / _INDEX).is_file():
        raise _no_weights(folder)
    index = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise SourceError(f"{folder / _INDEX}: damaged: it holds no weight_map")
    for shard in sorted(set(map(str, index.values()))):
        if Path(shard).name != shard:
            raise SourceError(f"{folder / _INDEX}: shard {shard!r} is not a file of the folder")
        if not (folder / shard).is_file():
            raise SourceError(f"{folder}: the shard {shard} that its index names is missing")
    return {
        shard: frozenset(name for name, where in index.items() if where == shard)
        for shard in sorted(set(index.values()))
    }


def _no_weights(folder: Path) -> SourceError:
    if any(folder.glob("pytorch_model*.bin")):
        return SourceError(
            f"{folder}: only pytorch_model.bin holds weights; loading a pickle runs the code "
            f"inside it, so it is refused. Convert it where you trust it: "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) writes "
            f"safetensors"
        )
    return SourceError(f"{folder}: no weights: neither {_SINGLE} nor {_INDEX} is there")


def _stored(
    folder: Path, weight_files: Mapping[str, frozenset[str] | None]
) -> dict[str, StoredWeight]:
    stored: dict[str, StoredWeight] = {}
    for name, expected in weight_files.items():
        tensors = open_safetensors(folder / name)
        missing = sorted((expected or frozenset()) - tensors.keys())
        if missing:
            raise SourceError(
                f"{folder}: the index names {missing[0]} in {name}, which does not hold it"
                + (f" ({len(missing) - 1} more)" if missing[1:] else "")
            )
        stored.update(tensors)
    return stored
