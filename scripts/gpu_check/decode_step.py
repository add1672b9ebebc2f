"""Rows of whole decode steps: a model of a billion parameters, built here and run by the runtime.

The weights are random, as only the time of a step is looked at; what a step computes is compared
in the tests (engines.py).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu_check.report import Row, skipped

SHAPE: Mapping[str, int] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
}
"""Of a Llama, its embedding tied to the head: 1.0 billion parameters."""
_CONTEXT, _TOKENS = 64, 32
_FLOOR_SHARE = 0.7


@dataclass(frozen=True)
class Target:
    """A target, and the packages that building for it and running it take."""

    name: str
    packages: tuple[str, ...]
    fields: Mapping[str, Any]

    @property
    def missing(self) -> list[str]:
        needed = ("onnx", "onnxscript", "transformers", "safetensors", "pydantic", *self.packages)
        return [name for name in needed if importlib.util.find_spec(name) is None]


def targets(capability: str) -> list[Target]:
    """Those whose engines a GPU runs."""
    rtx = {"precision": "fp16", "capabilities": [capability]}
    return [
        Target("cuda", ("onnxruntime",), {"precision": "fp16"}),
        Target("tensorrt", ("tensorrt",), {"precision": "fp16"}),
        Target("tensorrt_rtx", ("tensorrt_rtx",), rtx),
    ]


def rows(
    folder: Path, which: list[Target], bandwidth: float, shape: Mapping[str, int] = SHAPE
) -> Iterator[Row]:
    """One row a target; a target that fails is a row, and the next one runs."""
    for target in which:
        if target.missing:
            yield skipped("decode step", target.name, f"{', '.join(target.missing)} not installed")
            continue
        try:
            checkpoint = folder / "checkpoint"
            if not checkpoint.exists():
                write_checkpoint(checkpoint, shape)
            yield _row(target, checkpoint, folder / target.name, bandwidth)
        except Exception as error:  # noqa: BLE001  the other targets must still run
            yield Row("decode step", target.name, repr(error)[:300], verdict="FAILED")
        shutil.rmtree(folder / target.name, ignore_errors=True)


def _row(target: Target, checkpoint: Path, folder: Path, bandwidth: float) -> Row:
    from enginewright.builder.pipeline import build
    from enginewright.builder.recipe import make_recipe
    from enginewright.cli.bench.children import WORKERS
    from enginewright.cli.bench.roofline import step_bytes
    from enginewright.cli.bench.workload import weight_bytes
    from enginewright.runtime.artifact.artifact import Artifact

    recipe = make_recipe(
        {
            "name": "one-billion",
            "source": {"path": str(checkpoint)},
            "target": target.name,
            "limits": {"max_context": 256, "max_batch": 1},
            **target.fields,
        }
    )
    artifact = Artifact.open(build(recipe, folder, progress=lambda line: None))
    work = {
        "model": str(artifact.path),
        "threads": None,
        "tokens": _TOKENS,
        "batches": [[[5 + at for at in range(_CONTEXT)]]],
    }
    command = [sys.executable, str(WORKERS / "step_times.py")]
    given = json.dumps(work)  # not bench's sample(): that drops PYTHONPATH, by which all is found
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    (seconds,) = json.loads(done.stdout)["step_s"]
    read = step_bytes(weight_bytes(artifact), artifact.engine().kv, 1, _CONTEXT)
    share = read / bandwidth / seconds
    return Row(
        "decode step",
        f"{target.name}, {target.fields['precision']}, {read / 1e6:.0f} MB read",
        f"{share:.2f} of the bandwidth floor; {seconds * 1e6:.0f} us",
        f">= {_FLOOR_SHARE:g}",
        "ok" if share >= _FLOOR_SHARE else "MISSED",
        {"share_of_floor": share, "microseconds": seconds * 1e6, "bytes": read},
    )


def write_checkpoint(folder: Path, shape: Mapping[str, int]) -> None:
    """A Llama with random weights in float16, and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    fields: dict[str, Any] = {**shape, "bos_token_id": 0, "eos_token_id": 1}
    config = LlamaConfig(**fields, tie_word_embeddings=True)
    model: Any = LlamaForCausalLM(config)
    model.half().save_pretrained(folder)
    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: at for at, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    whole = fast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.save_pretrained(folder)
