"""Clients that others wrote, in their own environment, against a server of the tiny model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, SamplingParams

pytestmark = pytest.mark.slow

_TASK = """
task: choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
_QUESTIONS = (
    ("It was the best of", ["times", "wisdom", "ships and sails"], 0),
    ("Call me", ["Ishmael", "a ship", "worst"], 0),
    ("I thought I would sail about and see the", ["money", "watery part of the world"], 1),
    ("Having little money in my", ["purse", "age of foolishness", "long ago"], 0),
    ("Some years ago, never mind", ["best", "how long precisely"], 1),
    ("It was the age of", ["purse", "me", "foolishness"], 2),
)


@pytest.mark.parametrize("script", ["with_langchain.py", "with_litellm.py", "with_instructor.py"])
def test_smoke(script: str, run_client: Any, server: Any) -> None:
    assert run_client(script, server.url).strip().endswith("ok")


def test_lm_eval_gives_the_score_of_hugging_face(
    run_client: Any, server: Any, tiny_artifact: Path, tmp_path: Path
) -> None:
    data = tmp_path / "choices.jsonl"
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in _QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "choices.yaml").write_text(_TASK.format(data=data))
    told = run_client("with_lm_eval.py", server.url, str(tmp_path))
    (line,) = (line for line in told.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))

    expected = _by_hugging_face(tiny_artifact.parents[1] / "checkpoint")
    right = 0
    for measured, reference, (_, _, answer) in zip(
        found["samples"], expected, _QUESTIONS, strict=True
    ):
        assert measured == pytest.approx(reference, abs=1e-3)
        right += reference.index(max(reference)) == answer
    assert found["acc"] == pytest.approx(right / len(_QUESTIONS))


def _by_hugging_face(checkpoint: Path) -> list[list[float]]:
    """The log likelihood of each choice after its question, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def score(question: str, choice: str) -> float:
        head = tokenizer(question, add_special_tokens=False).input_ids
        ids = tokenizer(f"{question} {choice}", add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[at - 1, ids[at]]) for at in range(len(head), len(ids)))

    return [[score(question, choice) for choice in choices] for question, choices, _ in _QUESTIONS]


def test_schemathesis_finds_no_undocumented_answer(
    clients_python: Path, server: Any, tmp_path: Path
) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    checks += ",response_schema_conformance,response_headers_conformance,unsupported_method"
    done = subprocess.run(
        [
            *(str(clients_python.with_name("st")), "run", f"{server.url}/openapi.json"),
            *("--checks", checks, "--max-examples", "25", "--seed", "1"),
            *("--phases", "examples,coverage,fuzzing", "--request-timeout", "60", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    (model,) = server.models
    assert model.unfinished == 0


def test_the_documents_two_examples(server: Any, offline: LLM) -> None:
    """The completion client and the chat client of vLLM's pages, with our URL."""
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY")
    model = client.models.list().data[0].id
    completion = client.completions.create(
        model=model, prompt="A robot may not injure a human being", echo=False, n=2, logprobs=3
    )
    assert [choice.index for choice in completion.choices] == [0, 1]
    chat: Any = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Who won the world series in 2020?"},
    ]
    answer = client.chat.completions.create(messages=chat, model=model, temperature=0, max_tokens=8)
    (expected,) = offline.chat(chat, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    assert answer.choices[0].message.content == expected.outputs[0].text
    client.close()
