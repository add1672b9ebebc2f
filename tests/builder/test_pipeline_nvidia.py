"""Builds for GPUs as a whole, on a machine without one: published, and honest about the device."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import MissingDependencyError

pytest.importorskip("tensorrt_rtx")

LOOSE = {"min_top1_agreement": 0.5, "max_mean_kl": 1.0, "max_perplexity_increase": 0.5}


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory) -> Path:
    wider = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), wider)


def built(checkpoint: Path, folder: Path, lines: list[str], **changes: Any) -> Path:
    data: dict[str, Any] = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": "tensorrt_rtx",
        "precision": "fp16",
        "limits": {"max_context": 128, "max_batch": 8},
        "conformance": {"fp16": LOOSE},
    }
    return build(make_recipe(data | changes), folder, progress=lines.append)


def test_an_artifact_says_that_the_graph_passed_and_the_device_was_not_there(
    checkpoint: Path, tmp_path: Path
):
    lines: list[str] = []
    path = built(checkpoint, tmp_path, lines)
    manifest = json.loads((path / "manifest.json").read_text())
    found = manifest["conformance"]["native"]
    assert (found["graph"], found["device"]) == ("passed", "not run")
    assert {"tensorrt_rtx", "torch"} <= manifest["tools"].keys()
    assert not {"onnxruntime", "triton", "c++"} & manifest["tools"].keys()
    assert sorted(p.name for p in (path / "engine").iterdir()) == ["model.engine"]
    assert (path / "evidence" / "compile.json").exists()
    assert any(line.startswith("tensorrt_rtx: Building engine") for line in lines)
    (engine,) = Artifact.open(path).manifest.engines
    assert engine.nvidia is not None
    assert engine.nvidia.later
    lock = json.loads((path / "lock.json").read_text())
    assert lock["tools"]["tensorrt_rtx"] == engine.nvidia.library_version
    assert not engine.reproducible
    assert lock["engines"] == [
        {
            "target": "tensorrt_rtx",
            "plan": "native",
            "precision": "fp16",
            "fingerprint": engine.fingerprint,
            "reproducible": False,
            "cpu_kernels": None,
        }
    ]
    lines.clear()
    again = built(checkpoint, tmp_path, lines)
    assert json.loads((again / "manifest.json").read_text()) == manifest
    assert any(line.startswith("compile (from the cache): ") for line in lines)


def test_what_an_engine_was_made_from_is_the_same_though_its_bytes_may_not_be(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = []
    for name in ("one", "another"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{name}"))
        path = built(checkpoint, tmp_path / name, [])
        (engine,) = Artifact.open(path).manifest.engines
        found.append((engine.fingerprint, json.loads((path / "lock.json").read_text())))
    assert found[0] == found[1]


def test_a_paged_cache_in_int8_gets_its_scales_from_the_model(checkpoint: Path, tmp_path: Path):
    pytest.importorskip("triton")
    path = built(
        checkpoint,
        tmp_path,
        [],
        attention="plugin",
        capabilities=["8.6"],
        kv_cache={"dtype": "int8", "block_size": 16},
    )
    manifest = Artifact.open(path).manifest
    (engine,) = manifest.engines
    assert (engine.kv.dtype, engine.kv.block_size) == ("int8", 16)
    assert engine.nvidia is not None
    assert engine.nvidia.plugins[0].kernels in manifest.files
    assert {"tensorrt_rtx", "triton"} <= manifest.tools.keys()


def test_what_is_missing_is_told_before_the_model_is_exported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines: list[str] = []
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"enginewright\[tensorrt\]"):
        built(checkpoint, tmp_path, lines, target="tensorrt")
    assert lines == ["source ..."]
    assert list(tmp_path.iterdir()) == []
