"""What lowering did is recorded: operations after each pass, and the errors of rounded matrices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from enginewright.builder.pipeline import build
from enginewright.builder.quantization import quantize
from enginewright.builder.recipe import make_recipe
from enginewright.builder.weights import ArrayWeight


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 0.12)])
def test_the_error_of_a_matrix_is_told(bits: int, most: float) -> None:
    values = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    told: dict[str, tuple[int, float | None]] = {}
    blocks = quantize(
        ArrayWeight(values), bits, 32, "w", note=lambda *each: told.update({each[0]: each[1:]})
    )

    error = np.linalg.norm(blocks.dequantize() - values) / np.linalg.norm(values)
    assert told["w"] == (bits, pytest.approx(float(error), rel=1e-5))
    assert 0 < error < most


def test_a_matrix_of_zeros_has_no_error() -> None:
    told = []
    quantize(ArrayWeight(np.zeros((8, 32), np.float32)), 8, 32, "w", note=lambda *e: told.append(e))
    assert told == [("w", 8, 0.0)]


def test_a_build_records_its_passes_and_matrices(make_checkpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", {})
    fields = {
        "name": "a",
        "source": {"path": str(checkpoint)},
        "target": "cpu",
        "precision": "int8",
        "limits": {"max_context": 128, "max_batch": 2},
        "conformance": {"int8": {"min_top1_agreement": 0, "max_perplexity_increase": 1}},
    }
    place = build(make_recipe(fields), tmp_path / "out", progress=lambda line: None)
    told = json.loads((place / "evidence" / "lowering.json").read_text("utf-8"))

    by_plan = {each["plan"]: each["operations"] for each in told["passes"]}
    assert "CachedAttention" in by_plan[None]
    assert by_plan["plain"]["GroupQueryAttention"] == 2
    assert "BlockLinear" not in by_plan["plain"]
    errors = {name: each["error"] for name, each in told["matrices"].items()}
    assert len(errors) >= 2 * 4
    assert all(0 < error < 0.02 for error in errors.values())
