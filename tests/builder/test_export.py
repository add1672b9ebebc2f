"""The exported graph: sizes that change from step to step have names, the same everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx_ir as ir
import pytest
from transformers import GPT2Config

from enginewright.builder.export import Exported, export
from enginewright.builder.families import family_of

POOL = ["blocks", 4, "block_size", 8]


@pytest.fixture(scope="module")
def exported() -> Exported:
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=259, n_positions=64, **ends)
    return export(config, family_of("GPT2LMHeadModel"))


def shapes(values: list[ir.Value]) -> dict[str | None, list[int | str]]:
    """Each value's sizes, by its name."""
    return {
        value.name: [size if isinstance(size, int) else str(size) for size in value.shape or ()]
        for value in values
    }


def test_inputs_and_outputs(exported: Exported) -> None:
    graph = exported.model.graph
    pools = [f"{kind}_cache.{layer}" for layer in range(2) for kind in "kv"]
    assert shapes(graph.inputs) == {
        "input_ids": ["batch", "sequence"],
        "past_lengths": ["batch"],
        "new_lengths": ["batch"],
        "block_table": ["batch", "blocks_per_row"],
        "positions": ["batch", "sequence"],
        **dict.fromkeys(pools, POOL),
    }
    assert shapes(graph.outputs) == {
        "logits": ["batch", "sequence", 259],
        **{f"{name}.out": POOL for name in pools},
    }


def test_all_values_between_them(exported: Exported) -> None:
    values = [value for node in exported.model.graph for value in node.outputs]
    named = {size for shape in shapes(values).values() for size in shape if isinstance(size, str)}
    found = {name for size in named for name in re.findall(r"[a-z]\w*", size)}
    assert {"batch", "sequence"} < found <= {"batch", "sequence", "blocks", "block_size"}


def test_the_manifest_has_the_names(tiny_artifact: Path) -> None:
    manifest = json.loads((tiny_artifact / "manifest.json").read_text("utf-8"))
    found = {tensor["name"]: tensor["shape"] for tensor in manifest["engines"][0]["io"]}
    assert found.pop("input_ids") == ["batch", "sequence"]
    assert found.pop("past_lengths") == found.pop("new_lengths") == ["batch"]
    assert found.pop("logits_index") == ["logits"]
    assert found.pop("logits") == ["logits", 320]
    assert set(map(tuple, found.values())) == {("blocks", 2, "block_size", 16)}
