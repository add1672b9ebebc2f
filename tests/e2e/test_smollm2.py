"""The published recipes over the real SmolLM2: built, proven, served without torch.

Each artifact is built once for all tests here; they share the export and the reference.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.builder.pipeline import build
from enginewright.builder.recipe import load_recipe
from enginewright.builder.source import open_source
from enginewright.builder.targets.operators import find_compiler
from enginewright.runtime import LLM, SamplingParams, StructuredOutputsParams
from enginewright.runtime.conformance import REFERENCE_FILE, Reference
from enginewright.runtime.verification import verify_artifact

RECIPES = Path(__file__).parents[2] / "recipes"
QUESTION = [{"role": "user", "content": "Name the capital city of France."}]
ANSWER = "The capital city of France is Paris."

Build = Callable[[str], Path]


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def artifact(request: pytest.FixtureRequest, built: Build) -> Path:
    return built(f"cpu-{request.param}")


PLANS = [
    (precision, plan)
    for precision in ("int8", "int4")
    for plan in (["native", "plain"] if find_compiler() else ["plain"])
]


def _conformance(artifact: Path, plan: str) -> dict[str, float]:
    return json.loads((artifact / "manifest.json").read_text())["conformance"][plan]["measures"]


def test_greedy_ids_of_fp32_equal_hugging_faces(built: Build):
    measures = _conformance(built("cpu-fp32"), "plain")
    assert measures["greedy_prompts"] == 20
    assert measures["greedy_prompts_equal"] == 20
    assert measures["greedy_ties"] == 0


@pytest.mark.parametrize(("precision", "plan"), PLANS)
def test_rounded_engines_are_near_lossless(built: Build, precision: str, plan: str):
    measures = _conformance(built(f"cpu-{precision}"), plan)
    assert measures["top1_agreement"] >= 0.95
    assert measures["perplexity"] <= 1.01 * measures["reference_perplexity"]
    assert measures["prefill_invariant"] is True
    assert measures["decode_invariant"] is True


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")
def test_int8_with_our_operators_answers_as_hugging_face_does(built: Build):
    """The source's blocks as they stand, activations in 16 bits: nothing much is rounded.

    A continuation may part from the model's only where two tokens are next to equal in fp32.
    """
    measures = _conformance(built("cpu-int8"), "native")
    assert measures["greedy_prompts_equal"] >= 19
    assert measures["mean_kl"] < 1e-5
    gaps = _gaps_where_greedy_parts(built("cpu-int8"), built("cpu-fp32"))
    assert len(gaps) == 20 - measures["greedy_prompts_equal"]
    assert all(gap < 0.01 for gap in gaps)


def _gaps_where_greedy_parts(artifact: Path, exact: Path) -> list[float]:
    """Between the two likeliest tokens in fp32 (nats), at the first one that differs."""
    reference = Reference.load(artifact / REFERENCE_FILE)
    greedy = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    two = SamplingParams(temperature=0, max_tokens=1, logprobs=2)
    with LLM(artifact, plan="native") as llm:
        answers = llm.generate(reference.prompts(), greedy)
    parted = []
    for answer, wanted in zip(answers, reference.greedy_ids.tolist(), strict=True):
        found = answer.outputs[0].token_ids
        differing = [at for at, token in enumerate(wanted) if found[at] != token]
        if differing:
            parted.append([*answer.prompt_token_ids, *wanted[: differing[0]]])
    with LLM(exact) as llm:
        likeliest = [output.outputs[0].logprobs[0] for output in llm.generate(parted, two)]
    return [abs(a.logprob - b.logprob) for a, b in (list(each.values())[:2] for each in likeliest)]


@pytest.mark.parametrize(("precision", "plan"), PLANS)
def test_sampling_does_not_depend_on_the_batch(built: Build, precision: str, plan: str):
    prompts = ["The capital of Italy is", "Once", "A recipe for bread: take flour, water and"]
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    with LLM(built(f"cpu-{precision}"), plan=plan) as llm:
        together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        alone = [llm.generate(prompt, params)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone


def test_it_answers(artifact: Path):
    params = SamplingParams(temperature=0, max_tokens=32)
    with LLM(artifact) as llm:
        (output,) = llm.chat(QUESTION, params)
    assert output.outputs[0].text == ANSWER
    assert output.outputs[0].finish_reason == "stop"


def test_what_it_says_has_the_form_asked_for(artifact: Path):
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "people": {"type": "integer", "minimum": 0, "maximum": 10**8},
        },
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    forms = [
        StructuredOutputsParams(json=schema, disable_any_whitespace=True),
        StructuredOutputsParams(choice=["Paris", "Rome"]),
        StructuredOutputsParams(regex=r"\d{4}-\d\d"),
    ]
    params = [SamplingParams(n=3, seed=1, max_tokens=60, structured_outputs=form) for form in forms]
    with LLM(artifact) as llm:
        objects, cities, dates = llm.chat([QUESTION] * 3, params)
    for each in objects.outputs:
        assert set(json.loads(each.text)) == {"city", "people"}
    assert {each.text for each in cities.outputs} <= {"Paris", "Rome"}
    assert all(re.fullmatch(r"\d{4}-\d\d", each.text) for each in dates.outputs)
    assert {each.finish_reason for each in objects.outputs + dates.outputs} == {"stop"}


def test_verify_passes_without_torch(built: Build):
    code = (
        "import sys; from enginewright.runtime.verification import verify_artifact;"
        "reports = verify_artifact(sys.argv[1]);"
        "print(all(r.passed for r in reports.values()),"
        "*(m for m in ('torch', 'transformers', 'onnx') if m in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(built("cpu-int8"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["True"]


def test_an_id_of_fp32_does_not_depend_on_the_batch(built: Build):
    prompts = ["The capital of Italy is", "Once", "A recipe for bread: take flour, water and"]
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
    with LLM(built("cpu-fp32")) as llm:
        together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        alone = [llm.generate(prompt, params)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone


def test_compiling_stays_within_the_stored_size(built: Build):
    """Passes and quantization: anonymous memory within 1.5 times the source's stored bytes."""
    for precision in ("fp32", "int8", "int4"):
        stages = json.loads((built(f"cpu-{precision}") / "evidence" / "build.json").read_text())[
            "stages"
        ]
        recipe = load_recipe(RECIPES / f"smollm2-135m-instruct-cpu-{precision}.yaml")
        stored = open_source(recipe.source).stored_bytes
        assert 0 < stages["compile"]["anonymous_growth_bytes"] <= 1.5 * stored


def test_two_builds_are_equal_byte_for_byte(built: Build, tmp_path: Path):
    first = built("cpu-int8")
    recipe = load_recipe(RECIPES / "smollm2-135m-instruct-cpu-int8.yaml")
    second = build(recipe, tmp_path, progress=print)
    for path in sorted(first.rglob("*")):
        relative = path.relative_to(first)
        if path.is_file() and relative.parts[0] != "evidence":
            assert path.read_bytes() == (second / relative).read_bytes(), relative


def test_verify_finds_one_flipped_byte(built: Build, tmp_path: Path):
    from enginewright.runtime.errors import IntegrityError

    spoilt = tmp_path / "spoilt"
    subprocess.run(["cp", "-r", str(built("cpu-int4")), str(spoilt)], check=True)
    weights = spoilt / "engine" / "weights.bin"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 3)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(IntegrityError, match=r"weights\.bin"):
        verify_artifact(spoilt)
