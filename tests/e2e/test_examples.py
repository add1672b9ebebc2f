"""Every script of examples/ runs, and prints what the model says when asked in another way."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import (
    LLM,
    BeamSearchParams,
    SamplingParams,
    StructuredOutputsParams,
    load_chat_template,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Ran:
    """What a script printed, and the names that it defines."""

    out: str
    err: str
    names: dict[str, Any]

    def after(self, prefix: str) -> list[str]:
        """The rest of the lines that begin so."""
        return [line.removeprefix(prefix) for line in self.lines if line.startswith(prefix)]

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[[str], Ran]


@pytest.fixture(scope="module")
def run(int8: Path) -> Run:
    """Runs a script as a user does; only a DeprecationWarning of the script itself is allowed."""
    strict = ["-W", "error", "-W", "default::DeprecationWarning:__main__"]

    def run(name: str) -> Ran:
        path = EXAMPLES / f"{name}.py"
        done = subprocess.run(
            [sys.executable, *strict, str(path), str(int8)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Ran(done.stdout, done.stderr, runpy.run_path(str(path)))

    return run


def continued(llm: LLM, prompt: str, max_tokens: int = 16, **params: Any) -> str:
    """The greedy continuation of a prompt, run alone and given as ids."""
    ids = llm.get_tokenizer().encode(prompt, add_special_tokens=False)
    greedy = SamplingParams(temperature=0, max_tokens=max_tokens, **params)
    return llm.generate({"prompt_token_ids": ids}, greedy)[0].outputs[0].text


def test_basic(run: Run, llm: LLM) -> None:
    ran = run("basic")
    prompts = ran.names["PROMPTS"]
    assert ran.lines[: len(prompts)] == [
        f"Prompt: {prompt!r}, Generated text: {continued(llm, prompt)!r}" for prompt in prompts
    ]
    sampled = SamplingParams(temperature=0.8, top_p=0.95, seed=1, n=2, max_tokens=24)
    outputs = llm.generate(prompts[-1], sampled)[0].outputs
    assert outputs[0].text != outputs[1].text
    assert ran.lines[len(prompts) :] == [
        f"Sample {each.index}: {each.text!r}, ended by {each.finish_reason}" for each in outputs
    ]


def test_chat(run: Run, llm: LLM) -> None:
    ran = run("chat")
    start, end = "<|im_start|>", "<|im_end|>\n"
    turns = [f"{each['role']}\n{each['content']}" for each in ran.names["CONVERSATION"]]
    prompt = "".join(f"{start}{turn}{end}" for turn in turns) + f"{start}assistant\n"
    assert ran.lines[0] == f"Prompt: {prompt!r}, Generated text: {continued(llm, prompt, 48)!r}"
    assert ran.lines[1].endswith("Generated text: 'The capital city of France is Paris.'")
    (rest,) = ran.after("Continued: ")
    (question,) = llm.chat(ran.names["QUESTION"], SamplingParams(max_tokens=1))
    assert rest == repr(continued(llm, f"{question.prompt}Of course. It is", 48))


def test_custom_template(run: Run, llm: LLM) -> None:
    ran = run("custom_template")
    asked = "Question: What is the capital of France?\nAnswer: Paris\n\n"
    by_file = f"Answer the questions.\n\n{asked}Question: And the capital of Portugal?\nAnswer:"
    prompts = {
        "file": by_file,
        "literal": "system: Answer the questions.\nuser: What is the capital of France?\n"
        "assistant: Paris\nuser: And the capital of Portugal?\nbot:",
        "built-in": "<|im_start|>system\nAnswer the questions.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis<|im_end|>\n"
        "<|im_start|>user\nAnd the capital of Portugal?<|im_end|>\n<|im_start|>assistant\n",
        "LLM": by_file,
    }
    assert ran.lines == [
        f"By {source}: {prompt!r} -> {continued(llm, prompt, stop=chr(10))!r}"
        for source, prompt in prompts.items()
    ]
    assert load_chat_template(ran.names["FILE"]) == ran.names["FILE"].read_text("utf-8")
    assert "Lisbon" in ran.lines[0]


def test_beam_search(run: Run, llm: LLM) -> None:
    ran = run("beam_search")
    prompt = ran.names["PROMPT"]
    hf = BeamSearchParams(4, 16, algorithm="hf", early_stopping=True, length_penalty=0.5)
    theirs = llm.beam_search(prompt, BeamSearchParams(4, 16))[0].sequences
    ours = llm.beam_search(prompt, hf)[0].sequences
    assert ran.after("vllm ") == [
        f"{each.score:.4f} {prompt + each.generated_text!r} (new: {each.generated_text!r})"
        for each in theirs
    ]
    assert ran.after("hf ") == [f"{each.score:.4f} {each.generated_text!r}" for each in ours]
    assert ran.after("generate ") == [
        f"{index} {each.generated_text!r}" for index, each in enumerate(theirs)
    ]
    assert "DeprecationWarning: generate() with BeamSearchParams: call LLM.beam_search" in ran.err
    for kind in ("vllm ", "hf "):
        scores = [float(line.split()[0]) for line in ran.after(kind)]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)


def test_streaming(run: Run, llm: LLM) -> None:
    ran = run("streaming")
    prompts = ran.names["PROMPTS"]
    assert ran.out.startswith(continued(llm, prompts[0], 24) + "\n")
    for prompt in prompts:
        deltas = [repr_text[1:-1] for repr_text in ran.after(f"{prompt} | ")]
        assert len(deltas) > 1
        assert "".join(deltas) == repr(continued(llm, prompt, 12))[1:-1]
    (left,) = ran.after("left: ")
    assert re.fullmatch(r"', 3, 4, (\d, )*\d?,? ?'", left)


def test_structured_output(run: Run, llm: LLM) -> None:
    ran = run("structured_output")
    (answer,), (date,), (choice,) = map(ran.after, ("json: ", "regex: ", "choice: "))
    assert json.loads(answer) == {"name": "Alice", "age": 30, "city": "Lisbon"}
    assert answer == json.dumps(json.loads(answer), separators=(",", ":"))
    assert re.fullmatch(r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d", date)
    assert choice in ("hot", "cold")
    # Without the form the model answers in its own way.
    question = "Is the sun hot or cold?"
    messages = [{"role": "user", "content": question}]
    (free,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=8))
    assert free.outputs[0].text not in ("hot", "cold")
    form = StructuredOutputsParams(choice=["hot", "cold"])
    (held,) = llm.chat(messages, SamplingParams(temperature=0, structured_outputs=form))
    assert choice == held.outputs[0].text


def test_default_params(run: Run) -> None:
    lines = re.sub(r": \S+/generation_config", ": FILE", run("default_params").out).splitlines()
    ends = "    eos_token_ids = [2]: the model's tokenizer and configs"
    assert lines[:4] == ["{}", ends, "{'generation_config': 'vllm'}", ends]
    assert lines[5:9] == [
        "    temperature = 0.6: override_generation_config",
        "    max_tokens = 64: override_generation_config",
        ends,
        "a folder's",
    ]
    of_folder = [
        "    temperature = 0.2: FILE.json: temperature",
        "    top_p = 0.9: FILE.json: top_p",
    ]
    assert lines[9:12] == [*of_folder, ends]
    given = {line.split()[0]: line.split()[2] for line in lines[13:17]}
    assert given == {
        "temperature": "1.0:",
        "top_p": "1.0:",
        "top_k": "40:",
        "eos_token_ids": "[2]:",
    }
    assert "not 0.2 of" in lines[13]
    assert lines[15] == "    top_k = 40: given by the call"
    assert lines[17:] == ["0.2"]


def test_hf_pitfalls(run: Run, llm: LLM) -> None:
    ran = run("hf_pitfalls")
    numbers = [continued(llm, "A sequence of numbers: 1, 2", count) for count in (16, 50)]
    assert numbers[1].startswith(numbers[0])
    assert ran.after("length: ") == [f"16 tokens, {numbers[0]!r}", f"50 tokens, {numbers[1]!r}"]
    (greedy,), (sampled,), (again,) = (
        ran.after(f"mode {name}: ") for name in ("greedy", "sampled", "again")
    )
    assert greedy == repr(continued(llm, "I am a cat.", 20))
    assert sampled == again != greedy
    (together,), (alone,) = ran.after("padding: together "), ran.after("padding: alone    ")
    assert together == alone
    assert "', 4, 5, 6" in together
    assert "', F, G, H" in together
    (plain,), (chat,) = ran.after("format plain: "), ran.after("format chat: ")
    assert chat == "'The capital city of France is Paris.'"
    assert plain != chat
    assert "[not-chat-formatted]" in ran.err


def test_logits_processor(run: Run, llm: LLM) -> None:
    ran = run("logits_processor")
    plain, changed = ran.lines
    assert plain == repr(continued(llm, "I am a cat.", 20))
    params = SamplingParams(
        temperature=0, max_tokens=20, logits_processors=[ran.names["never_twice"]]
    )
    completion = llm.generate("I am a cat.", params)[0].outputs[0]
    assert len(set(completion.token_ids)) == len(completion.token_ids)
    assert changed == repr(completion.text) != plain


def test_each_example_is_tested_and_listed() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = re.findall(r"\((\w+)\.py\)", (EXAMPLES / "README.md").read_text("utf-8"))
    assert sorted(listed) == sorted(names)
    assert {f"test_{name}" for name in names} <= globals().keys()
