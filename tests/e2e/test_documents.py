"""Code in documents runs: vLLM's pages with import and model changed, our own pages as they are."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEMPLATE = ROOT / "examples" / "questions.jinja"
MODELS = ("facebook/opt-125m", "meta-llama/Meta-Llama-3-8B-Instruct")
DEFAULT, GREEDY, BEAMS, CHAT, CUSTOM = range(5)
PROMPT = "Hello, my name is"
DECODE_ROUNDING = 0.03  # int8 rounds otherwise in steps of one token than in a prompt's
ESSAY = "Write an essay about the importance of higher education."

Namespace = dict[str, Any]
Run = Callable[..., Namespace]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The info string and the text of each fenced block."""
    return re.findall(r"^```([\w ]*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def execute(code: str, name: str, namespace: Namespace) -> None:
    exec(compile(code, name, "exec"), namespace)


def adapted(code: str, artifact: Path) -> str:
    """Import, model and template path changed, and nothing else."""
    for model in MODELS:
        code = code.replace(f'LLM(model="{model}")', f"LLM(model={str(artifact)!r})")
    code = re.sub(
        r"^from vllm[\w.]* import ", "from enginewright.runtime import ", code, flags=re.M
    )
    code = code.replace('"<path_to_template>"', repr(str(TEMPLATE)))
    assert not re.search(r"vllm|facebook|meta-llama|<path", code)
    return code


older = pytest.mark.parametrize("run", ["older"], indirect=True)
newer = pytest.mark.parametrize("run", ["newer"], indirect=True)
both = pytest.mark.parametrize("run", ["older", "newer"], indirect=True)


@pytest.fixture
def run(request: pytest.FixtureRequest, int8: Path) -> Run:
    """``run(*numbers)``: the names that a page's blocks with these numbers leave behind.

    The older page has no imports: they are given.
    """
    page = request.param
    code = [text for _, text in blocks(HERE / "vllm_pages" / f"{page}.md")]

    def run(*numbers: int) -> Namespace:
        namespace: Namespace = {}
        if page == "older":
            imports = "from vllm import LLM, BeamSearchParams, SamplingParams"
            execute(adapted(imports, int8), "imports", namespace)
        for number in numbers:
            execute(adapted(code[number], int8), f"{page}.md, block {number}", namespace)
        return namespace

    return run


def printed(prompt: str, text: str) -> str:
    return f"Prompt: {prompt!r}, Generated text: {text!r}\n"


@both
def test_vllm_generate(run: Run, llm: LLM, capsys: pytest.CaptureFixture[str]):
    """Drawn by the model's own defaults, which are vLLM's: any text, of at most 16 tokens."""
    (output,) = run(DEFAULT)["outputs"]
    completion = output.outputs[0]
    assert output.prompt == PROMPT
    assert 1 <= len(completion.token_ids) <= 16
    assert completion.text == llm.get_tokenizer().decode(completion.token_ids)
    assert completion.finish_reason == ("length" if len(completion.token_ids) == 16 else "stop")
    assert capsys.readouterr().out == printed(PROMPT, completion.text)


@both
def test_vllm_greedy(run: Run, llm: LLM, capsys: pytest.CaptureFixture[str]):
    (output,) = run(GREEDY)["outputs"]
    prompt, generated = output.prompt_token_ids, output.outputs[0].token_ids
    logits = llm.logits(prompt + generated)[len(prompt) - 1 : -1]
    assert generated == logits.argmax(axis=-1).tolist()
    assert len(generated) == 16
    text = llm.get_tokenizer().decode(prompt + generated)
    assert capsys.readouterr().out == printed(PROMPT, text.removeprefix(PROMPT))


@older
def test_vllm_beam_search_by_generate(run: Run, llm: LLM, capsys: pytest.CaptureFixture[str]):
    """The older page's call."""
    with pytest.warns(DeprecationWarning, match=r"LLM\.beam_search"):
        (request,) = run(BEAMS)["outputs"]
    beams = [(each.token_ids, each.cumulative_logprob) for each in request.outputs]
    check_beams(llm, request.prompt_token_ids, beams)
    best = request.outputs[0].text
    assert best == llm.get_tokenizer().decode(beams[0][0])
    assert capsys.readouterr().out == printed(PROMPT, best)


@newer
def test_vllm_beam_search(run: Run, llm: LLM, capsys: pytest.CaptureFixture[str]):
    """The newer page's call; text and tokens begin with the prompt."""
    (output,) = run(BEAMS)["outputs"]
    prompt = llm.get_tokenizer().encode(PROMPT + " ")
    assert all(each.tokens[: len(prompt)] == prompt for each in output.sequences)
    beams = [(each.tokens[len(prompt) :], each.cum_logprob) for each in output.sequences]
    check_beams(llm, prompt, beams)
    best = llm.get_tokenizer().decode(output.sequences[0].tokens)
    assert best.startswith(PROMPT + " ")
    assert capsys.readouterr().out == f"Generated text: {best!r}\n"


def check_beams(llm: LLM, prompt: list[int], beams: list[tuple[list[int], float]]) -> None:
    """Five different ones, the best first, with the log probabilities that the model gives them."""
    assert len({tuple(token_ids) for token_ids, _ in beams}) == 5
    scores = []
    for token_ids, logprob in beams:
        logits = llm.logits(prompt + token_ids)[len(prompt) - 1 : -1].astype(np.float64)
        chosen = logits[np.arange(len(token_ids)), token_ids]
        total = (chosen - np.log(np.exp(logits).sum(axis=-1))).sum()
        assert logprob == pytest.approx(total, rel=DECODE_ROUNDING)
        scores.append(logprob / len(token_ids))
    assert scores == sorted(scores, reverse=True)


@both
def test_vllm_chat(run: Run, capsys: pytest.CaptureFixture[str]):
    (output,) = run(CHAT)["outputs"]
    turns = [
        "system\nYou are a helpful assistant",
        "user\nHello",
        "assistant\nHello! How can I assist you today?",
        f"user\n{ESSAY}",
    ]
    prompt = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
    assert output.prompt == prompt + "<|im_start|>assistant\n"
    assert output.outputs[0].text
    assert capsys.readouterr().out == printed(output.prompt, output.outputs[0].text)


@both
def test_vllm_custom_template(run: Run, llm: LLM, capsys: pytest.CaptureFixture[str]):
    left = run(CHAT, CUSTOM)
    (output,) = left["outputs"]
    prompt = (
        "You are a helpful assistant\n\nQuestion: Hello\n"
        f"Answer: Hello! How can I assist you today?\n\nQuestion: {ESSAY}\nAnswer:"
    )
    assert output.prompt == prompt
    assert output.prompt_token_ids == llm.get_tokenizer().encode(prompt, add_special_tokens=False)
    shown = capsys.readouterr().out
    assert shown.endswith(f"Loaded chat template: {TEMPLATE.read_text('utf-8')}\n")


@pytest.mark.parametrize("name", ["from-transformers.md", "from-vllm.md"])
def test_our_page_runs_as_shown(
    name: str, int8: Path, llm: LLM, capsys: pytest.CaptureFixture[str]
):
    """``python`` blocks are ours, ``text`` is what they print, ``py`` the other library's.

    Words are compared where nothing is drawn, and with the plan that wrote the page.
    """
    page = blocks(ROOT / "docs" / name)
    compared = 0
    namespace: Namespace = {}
    for number, ((kind, code), (next_kind, shown)) in enumerate(pairwise([*page, ("", "")])):
        if kind == "py":
            ast.parse(code)
            assert next_kind == "python", f"nothing of ours stands beside\n{code}"
        if kind != "python":
            continue
        ours = re.sub(r'"artifacts/[\w.-]+"', repr(str(int8)), code)
        execute(ours, f"{name}, block {number}", namespace)
        printed = capsys.readouterr().out.rstrip("\n")
        expected = shown.rstrip("\n") if next_kind.startswith("text") else ""
        assert bool(printed) == bool(expected), code
        if next_kind == "text" and llm.plan == "native":
            assert printed == expected, code
            compared += 1
    assert compared or llm.plan != "native"
