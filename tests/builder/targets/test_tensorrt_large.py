"""A Llama of a billion parameters, random ones: one engine for all capabilities, within its memory.

It takes some minutes, and 4 GB of disk.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import LlamaConfig

from enginewright.builder.export import attach_weights, export
from enginewright.builder.families import family_of
from enginewright.builder.targets import CompileRequest, target_of
from enginewright.builder.targets.tensorrt.capabilities import RTX
from enginewright.builder.targets.tensorrt.header import check_header
from enginewright.builder.weights import Weight
from enginewright.runtime.artifact.manifest import LimitsEntry

pytest.importorskip("tensorrt_rtx")

MOST_MEMORY = 2.5
"""Peak anonymous memory of the compiling process, in sizes of the engine."""


class Drawn(Weight):
    """Random rows, the same each time they are read; each seed has its own."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        super().__init__(shape)
        self._seed = seed

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        drawn = [
            np.random.default_rng((self._seed, row)).standard_normal(self.shape[1:], np.float32)
            for row in range(start, stop)
        ]
        return np.stack(drawn) * np.float32(0.02)


@pytest.mark.slow
def test_a_billion_parameters_for_all_capabilities(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=8192,
    )
    exported = export(config, family_of("LlamaForCausalLM"))
    weights = {
        owner: Drawn(tuple(exported.model.graph.initializers[name].shape.numpy()), seed)
        for seed, (name, owner) in enumerate(exported.owners.items())
    }
    model = attach_weights(exported, weights.__getitem__)
    request = CompileRequest(
        tmp_path, "fp16", LimitsEntry(8192, 32), exported.caches, capabilities=tuple(RTX)
    )
    (entry,) = target_of("tensorrt_rtx").compile(model, request)
    check_header(tmp_path / entry.model, tuple(RTX))
    report = json.loads((tmp_path / "evidence" / "compile.json").read_text())
    print(report)
    assert report["weights_bytes"] > 1.6e9
    assert report["anonymous_peak_over_engine"] < MOST_MEMORY
