"""Writes a GGUF file of a Llama-shaped model with random weights, to measure speed with.

    python scripts/random_llama.py TOKENIZER.gguf OUTPUT.gguf

Tokenizer and chat template are those of another GGUF file of a Llama. By default the shape is that
of a model of about one billion parameters. Linear layers are Q4_1 and the tied embedding is Q8_0,
as in the demo model; what such a model writes says nothing of quality.

| tensor                  | shape                | dtype | meaning                                |
|-------------------------|----------------------|-------|----------------------------------------|
| a matrix of N x K, Q4_1 | [N, K / 32 * 20]     | uint8 | of each block fp16 scale and minimum,  |
|                         |                      |       | then 32 codes of 4 bits                |
| ... Q8_0                | [N, K / 32 * 34]     | uint8 | fp16 scale, then 32 codes of 8 bits    |
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Tensor = tuple[str, NDArray[Any], gguf.GGMLQuantizationType]

_Q4_DEVIATION = np.sqrt((16**2 - 1) / 12)
_Q8_DEVIATION = np.sqrt((255**2 - 1) / 12)
_KEPT = ("tokenizer.",)
"""What is copied from the other file."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; heads have ``hidden / heads`` elements."""

    layers: int = 16
    hidden: int = 2048
    ffn: int = 8192
    heads: int = 32
    kv_heads: int = 8
    context: int = 8192
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description="A GGUF file of a Llama with random weights.")
    parser.add_argument("tokenizer", type=Path, help="GGUF file that has the tokenizer")
    parser.add_argument("output", type=Path)
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    given = vars(parser.parse_args())
    source, output = given.pop("tokenizer"), given.pop("output")
    write(source, output, Shape(**given))


def write(tokenizer: Path, output: Path, shape: Shape) -> None:
    """Write the file; ``tokenizer`` is another one, whose vocabulary it gets."""
    reader = gguf.GGUFReader(tokenizer)
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(output, "llama")
    _describe(writer, shape, tokens)
    for field in reader.fields.values():
        if field.name.startswith(_KEPT):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for name, data, kind in tensors(shape, tokens):
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, shape: Shape, tokens: int) -> None:
    writer.add_name(f"random-llama-{shape.layers}x{shape.hidden}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tokens)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)


def tensors(shape: Shape, tokens: int) -> Iterator[Tensor]:
    """All of the model, one after another; equal shapes and seeds give equal tensors."""
    draw, h = np.random.default_rng(shape.seed), shape.hidden
    kv = h // shape.heads * shape.kv_heads
    yield "token_embd.weight", q8_0(draw, tokens, h), gguf.GGMLQuantizationType.Q8_0
    matrices = {
        "attn_q": (h, h),
        "attn_k": (kv, h),
        "attn_v": (kv, h),
        "attn_output": (h, h),
        "ffn_gate": (shape.ffn, h),
        "ffn_up": (shape.ffn, h),
        "ffn_down": (h, shape.ffn),
    }
    norm = np.ones(h, np.float32), gguf.GGMLQuantizationType.F32
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight", *norm
        yield f"blk.{layer}.ffn_norm.weight", *norm
        for name, (rows, columns) in matrices.items():
            data = q4_1(draw, rows, columns)
            yield f"blk.{layer}.{name}.weight", data, gguf.GGMLQuantizationType.Q4_1
    yield "output_norm.weight", *norm


def q4_1(draw: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Blocks whose weights have a mean of about 0 and a deviation of ``columns ** -0.5``."""
    blocks = draw.integers(0, 256, (rows, columns // 32, 20), np.uint8)
    scales = draw.uniform(0.8, 1.2, blocks.shape[:2]) / _Q4_DEVIATION / columns**0.5
    head = np.stack([scales, -7.5 * scales], axis=-1).astype(np.float16)
    blocks[..., :4] = head.view(np.uint8)
    return blocks.reshape(rows, -1)


def q8_0(draw: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """The same in 8 bits."""
    blocks = draw.integers(0, 256, (rows, columns // 32, 34), np.uint8)
    scales = draw.uniform(0.8, 1.2, blocks.shape[:2]) / _Q8_DEVIATION / columns**0.5
    blocks[..., :2] = scales[..., None].astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


if __name__ == "__main__":
    main()
