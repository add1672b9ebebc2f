"""The backend of target cuda: what it asks of ONNX Runtime, and its engine on the host's memory.

A fallback to the CPU is an error: as a rule for providers here, for real where onnxruntime-gpu is
installed and CUDA is not, and on a GPU the whole engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import open_engine, repair
from enginewright.runtime.backends.device.planning import BoundStep
from enginewright.runtime.backends.onnxruntime_cuda.engine import longest_total, run_failure
from enginewright.runtime.backends.onnxruntime_cuda.session import (
    PROVIDER,
    check_installed,
    check_providers,
    open_session,
    provider_options,
    run_options,
)
from enginewright.runtime.cuda.driver import device_facts
from enginewright.runtime.errors import DeviceError, MissingDependencyError

HERE = Path(__file__).parent
CONTEXT = 64
PROMPTS = [[3, 14, 159, 26, 53, 58, 97, 93, 238], [200, 11, 7], [42, 42, 42, 8, 100]]
TOLERANCE = 0.05
"""Of logits whose deviation is about 4, in float16."""


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cuda") / "checkpoint", {})


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in float16, built by the pipeline, whose conformance interprets the graph."""
    pytest.importorskip("onnx_ir")
    from enginewright.builder.pipeline import build
    from enginewright.builder.recipe import make_recipe

    recipe = make_recipe(
        {
            "name": "tiny-cuda",
            "source": {"path": str(checkpoint)},
            "target": "cuda",
            "precision": "fp16",
            "limits": {"max_context": CONTEXT, "max_batch": 6},
        }
    )
    return build(recipe, tmp_path_factory.mktemp("artifacts"), progress=lambda line: None)


def test_the_manifest_says_that_no_device_ran_it(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    found = manifest.conformance["cuda"]
    assert (found["graph"], found["device"]) == ("passed", "not run")
    assert manifest.engines[0].nvidia is not None


def test_an_onnx_runtime_without_cuda_is_told_how_to_get_one() -> None:
    check_installed([PROVIDER, "CPUExecutionProvider"], {"onnxruntime-gpu"})
    with pytest.raises(MissingDependencyError) as alone:
        check_installed(["CPUExecutionProvider"], {"onnxruntime"})
    assert "pip uninstall onnxruntime, then pip install 'enginewright[cuda]'" in str(alone.value)
    with pytest.raises(MissingDependencyError) as both:
        check_installed(["CPUExecutionProvider"], {"onnxruntime", "onnxruntime-gpu"})
    assert (
        "both installed and overwrite each other: pip uninstall onnxruntime onnxruntime-gpu, then "
        "pip install 'enginewright[cuda]'"
    ) in str(both.value)


def test_the_cpu_target_runs_with_either_package() -> None:
    assert repair("cpu", {"onnxruntime-gpu"}).startswith("pip install --force-reinstall")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in repair(
        "cpu", {"onnxruntime", "onnxruntime-gpu"}
    )


@pytest.mark.parametrize("found", [["CPUExecutionProvider"], ["TensorrtExecutionProvider"], []])
def test_a_session_that_fell_back_is_an_error(found: list[str]) -> None:
    check_providers([PROVIDER, "CPUExecutionProvider"], Path("model.onnx"))
    with pytest.raises(DeviceError, match=r"model\.onnx: .*fell back") as refused:
        check_providers(found, Path("model.onnx"))
    assert refused.value.code == "engine_refused"


def test_the_engine_is_refused_where_onnx_runtime_has_no_cuda(artifact: Path) -> None:
    if PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("the ONNX Runtime that is installed has the CUDA provider")
    opened = Artifact.open(artifact)
    with pytest.raises(MissingDependencyError, match="needs onnxruntime-gpu"):
        open_engine(opened, opened.engine("cuda"))


def test_a_real_session_without_cuda_is_refused(artifact: Path) -> None:
    if PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    if _has_gpu():
        pytest.skip("this machine has a GPU")
    model = artifact / "engine" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    fallen = onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider"):
        check_providers(fallen.get_providers(), model)
    with pytest.raises((DeviceError, MissingDependencyError), match=r"cuda|GPU"):
        open_session(model, stream=0)


def test_provider_options_name_the_stream() -> None:
    options = provider_options(stream=0x7F00)
    assert options["user_compute_stream"] == str(0x7F00)
    assert options["has_user_compute_stream"] == options["enable_cuda_graph"] == "1"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert all(isinstance(value, str) for value in options.values())


@pytest.mark.parametrize(("graph", "number"), [(None, "-1"), (7, "7")])
def test_run_options_name_the_graph(graph: int | None, number: str) -> None:
    options = run_options(graph)
    assert options.get_run_config_entry("gpu_graph_id") == number
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"


@pytest.mark.parametrize(
    ("past", "new", "width", "total"),
    [([0, 0], [3, 5], 5, 5), ([0], [3], 4, 4), ([9], [4], 4, 13), ([9, 2], [1, 1], 1, 10)],
)
def test_total_length_of_a_step_over_prompts(
    past: list[int], new: list[int], width: int, total: int
) -> None:
    inputs = {
        "input_ids": np.zeros((len(past), width), np.int64),
        "past_lengths": np.array(past, np.int32),
        "new_lengths": np.array(new, np.int32),
    }
    assert longest_total(BoundStep("prefill", 0, 1, inputs)) == total


def test_failures_of_a_run_tell_memory_from_the_rest() -> None:
    full = run_failure("BFCArena: Failed to allocate memory for requested buffer of size 1024")
    assert (full.code, "max_num_seqs" in str(full)) == ("out_of_memory", True)
    assert run_failure("CUDA failure 700: an illegal memory access").code == "device_failed"


def test_the_engine_on_the_hosts_memory(
    artifact: Path, checkpoint: Path, host_driver: Path, tmp_path: Path
) -> None:
    """Steps, copies and growth over device addresses give Hugging Face's logits."""
    pytest.importorskip("cuda.bindings")
    results = tmp_path / "logits.npz"
    done = subprocess.run(
        [sys.executable, str(HERE / "onnxruntime_scenario.py"), str(artifact), str(results)],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(host_driver),
            "HOST_DRIVER_MEMORY": str(1 << 30),
            "HOST_DRIVER_DEVICES": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with np.load(results) as found:
        steps = list(found.values())
    rows = [_hugging_face(checkpoint, [*prompt, 5, 77, 250]) for prompt in PROMPTS]
    expected = [
        np.concatenate([row[:-3] for row in rows]),
        np.stack([row[-3] for row in rows]),
        np.stack([row[-2] for row in rows]),
        rows[0][4:-3],
        np.stack([row[-1] for row in rows]),
    ]
    for ours, theirs in zip(steps, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.gpu
def test_the_engine_on_a_gpu(artifact: Path, checkpoint: Path) -> None:
    """Rows together, with CUDA graphs from the first decode on, against Hugging Face's logits."""
    if not _has_gpu():
        pytest.skip("no NVIDIA GPU on this machine")
    if PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=1)
    with LLM(artifact, target="cuda") as llm:
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        outputs = [output.outputs[0] for output in llm.generate(prompts, params)]
        logits = llm.batch_logits(PROMPTS)
    for prompt, output, scores in zip(PROMPTS, outputs, logits, strict=True):
        ids = list(output.token_ids)
        expected = _hugging_face(checkpoint, [*prompt, *ids])[len(prompt) - 1 : -1]
        margin = expected.max(axis=1) - expected[np.arange(len(ids)), ids]
        assert margin.max() < 2 * TOLERANCE, "each token is the likeliest, or ties with it"
        np.testing.assert_allclose(
            scores, _hugging_face(checkpoint, prompt), atol=TOLERANCE, rtol=0
        )


def _has_gpu() -> bool:
    try:
        return bool(device_facts().name)
    except (DeviceError, MissingDependencyError):
        return False


def _hugging_face(checkpoint: Path, ids: list[int]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor([ids])).logits[0])
