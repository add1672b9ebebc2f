"""The linter's findings, each on an artifact or a prompt that has just that fault."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import (
    Manifest,
    SamplingDefault,
    SourceEntry,
    parse_manifest,
)
from enginewright.runtime.sampling.defaults import choose_defaults
from enginewright.runtime.text import linter
from enginewright.runtime.text.linter import (
    Facts,
    lint_artifact,
    lint_defaults,
    lint_ending,
    lint_prompt,
    lint_template,
)
from enginewright.runtime.text.prompt_warnings import _said
from enginewright.runtime.text.templates import load_chat_template, named_templates
from enginewright.runtime.text.tokenizer import Tokenizer

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
CHATML = load_chat_template("chatml")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def tokenizer(tiny_artifact: Path) -> Tokenizer:
    """The tiny artifact's, with the tokens of ChatML: 258 and 259."""
    backend = tokenizers.Tokenizer.from_file(str(tiny_artifact / "tokenizer.json"))
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return Tokenizer(backend)


@pytest.fixture
def facts(tiny_artifact: Path, tokenizer: Tokenizer) -> Callable[..., Facts]:
    """A chat model without a fault, but for what is changed."""
    manifest = Artifact.open(tiny_artifact).manifest

    def make(
        template: str | None = CHATML,
        tokens: Mapping[str, str] = TOKENS,
        generation: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Facts:
        fields = {**vars(manifest), "eos_token_ids": (EOS, IM_END), **changes}
        generation = {"eos_token_id": [EOS, IM_END]} if generation is None else generation
        return Facts(Manifest(**fields), tokenizer, tokens, generation, template)

    return make


def codes(findings: Any) -> list[str]:
    return [finding.code for finding in findings]


def only(findings: Any) -> Any:
    (finding,) = findings
    return finding


# ---- the artifact


def test_an_artifact_without_a_fault(facts: Callable[..., Facts]) -> None:
    good = facts(
        tokens={"bos_token": "<s>", "eos_token": "</s>"}, generation={}, eos_token_ids=(EOS,)
    )
    assert lint_artifact(good) == ()


def test_end_tokens_that_disagree_name_their_sources(facts: Callable[..., Facts]) -> None:
    found = only(
        lint_artifact(facts(generation={"eos_token_id": IM_END}, eos_token_ids=(5, EOS, IM_END)))
    )
    assert (found.level, found.code) == ("warning", "eos-disagree")
    assert "tokenizer: 257 '</s>'" in found.message
    assert "generation_config.json: 259 '<|im_end|>'" in found.message
    assert "the model's config: 5 '" in found.message


@pytest.mark.parametrize("stated", [EOS, [EOS], None, "x", [True]])
def test_end_tokens_that_agree(facts: Callable[..., Facts], stated: Any) -> None:
    assert lint_artifact(facts(generation={"eos_token_id": stated}, eos_token_ids=(EOS,))) == ()


def test_no_end_token(facts: Callable[..., Facts]) -> None:
    found = only(lint_artifact(facts(tokens={}, generation={}, eos_token_ids=())))
    assert (found.level, found.code) == ("warning", "no-eos")
    assert "stop_token_ids" in found.advice


def test_an_end_token_that_is_no_token(facts: Callable[..., Facts]) -> None:
    tokens = {"eos_token": "<end>"}
    found = only(lint_artifact(facts(tokens=tokens, generation={}, eos_token_ids=(EOS,))))
    assert (found.level, found.code) == ("error", "eos-unknown")
    assert "'<end>'" in found.message


@pytest.mark.parametrize(
    ("tokens", "generation"),
    [
        ({**TOKENS, "pad_token": "</s>"}, {}),
        (TOKENS, {"pad_token_id": EOS}),
    ],
)
def test_pad_equal_to_eos(
    facts: Callable[..., Facts], tokens: Mapping[str, str], generation: Mapping[str, Any]
) -> None:
    found = only(lint_artifact(facts(tokens=tokens, generation=generation, eos_token_ids=(EOS,))))
    assert (found.level, found.code) == ("note", "pad-is-eos")
    assert "</s>" in found.message


def test_a_missing_template_is_a_warning_for_what_seems_tuned(
    facts: Callable[..., Facts], tokenizer: Tokenizer, tiny_artifact: Path
) -> None:
    fine = {"generation": {}, "eos_token_ids": (EOS,), "template": None}
    found = only(lint_artifact(facts(**fine)))
    assert (found.level, found.code) == ("warning", "no-chat-template")
    assert "its vocabulary holds '<|im_start|>'" in found.message

    plain = Tokenizer.from_file(tiny_artifact / "tokenizer.json")
    base = Facts(facts(**fine).manifest, plain, TOKENS, {}, None)
    assert (only(lint_artifact(base)).level, codes(lint_artifact(base))) == (
        "note",
        ["no-chat-template"],
    )
    for name in ("Qwen-Chat", "x-7b-it", "A-Instruct-v2"):
        source = SourceEntry("hub", name, "sha256:0", "TinyForCausalLM")
        named = Facts(facts(**fine, source=source).manifest, plain, TOKENS, {}, None)
        assert "its name says so" in only(lint_artifact(named)).message


def test_defaults_of_the_model_that_are_not_neutral(facts: Callable[..., Facts]) -> None:
    defaults = {
        "temperature": SamplingDefault(0.6, "generation_config.json: temperature"),
        "top_p": SamplingDefault(1.0, "generation_config.json: top_p"),
    }
    manifest = facts(sampling_defaults=defaults).manifest
    found = only(lint_defaults(choose_defaults(manifest)))
    assert (found.level, found.code) == ("warning", "model-defaults")
    assert "temperature=0.6 (generation_config.json: temperature)" in found.message
    assert "top_p" not in found.message
    assert lint_defaults(choose_defaults(manifest, "vllm")) == ()


# ---- the template


def test_a_template_that_suits_the_model(facts: Callable[..., Facts]) -> None:
    assert lint_template(facts()) == ()
    assert lint_template(facts(template=None)) == ()


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no') }}"])
def test_a_template_that_fails_is_an_error(facts: Callable[..., Facts], template: str) -> None:
    found = only(lint_template(facts(template=template)))
    assert (found.level, found.code) == ("error", "template-fails")


def test_a_template_of_another_family(facts: Callable[..., Facts]) -> None:
    found = only(lint_template(facts(template=load_chat_template("phi-3"))))
    assert (found.level, found.code) == ("warning", "template-tokens-unknown")
    assert "<|user|>, <|end|>, <|assistant|>" in found.message


def test_answers_that_end_in_no_end_token(facts: Callable[..., Facts]) -> None:
    found = only(lint_template(facts(eos_token_ids=(EOS,))))
    assert (found.level, found.code) == ("warning", "turn-end-not-eos")
    assert "259 '<|im_end|>'" in found.message
    assert "stop_token_ids=[259]" in found.advice


# ---- prompts


@pytest.mark.parametrize("name", ["chatml", "alpaca", None])
def test_two_bos_are_an_error(facts: Callable[..., Facts], name: str | None) -> None:
    model = facts(template=load_chat_template(name))
    text = "<s>Hello" if name is None else "<s><|im_start|>user\n### Instruction:\n"
    found = only(lint_prompt(model, text))
    assert (found.level, found.code) == ("error", "double-bos")
    assert "256 '<s>'" in found.message
    assert codes(lint_prompt(model, None, [BOS, BOS, 5])) == ["double-bos"]
    for good in ([BOS, 5], [5, BOS, BOS], [5], [BOS, 5, BOS]):
        assert lint_prompt(model, None, good) == ()


def test_a_prompt_of_only_special_tokens(facts: Callable[..., Facts]) -> None:
    assert codes(lint_prompt(facts(), "</s>")) == ["only-special-tokens"]
    assert codes(lint_prompt(facts(), None, [BOS])) == ["only-special-tokens"]
    assert codes(lint_prompt(facts(), None, [BOS, 1])) == []


def test_plain_text_for_a_chat_model(facts: Callable[..., Facts]) -> None:
    found = only(lint_prompt(facts(), "What is the capital of France?"))
    assert (found.level, found.code) == ("warning", "not-chat-formatted")
    assert "<|im_end|>, <|im_start|>" in found.message
    assert "use chat()" in found.advice
    assert lint_prompt(facts(), "<|im_start|>user\nHi<|im_end|>\n") == ()
    assert lint_prompt(facts(), None, [BOS, 5, 6]) == ()
    assert lint_prompt(facts(template=None), "What is the capital of France?") == ()


def test_a_mark_that_is_bos_is_a_mark(facts: Callable[..., Facts]) -> None:
    model = facts(tokens={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    assert codes(lint_prompt(model, "Hi")) == ["not-chat-formatted"]


@pytest.mark.parametrize("template", [CHATML, None])
def test_the_marks_of_another_family(facts: Callable[..., Facts], template: str | None) -> None:
    for text in ("[INST] hi [/INST]", "<start_of_turn>user\nhi", "### Instruction:\nhi"):
        found = only(lint_prompt(facts(template=template), text))
        assert (found.level, found.code) == ("warning", "foreign-chat-marks")
    alpaca = facts(template=load_chat_template("alpaca"))
    assert lint_prompt(alpaca, "### Instruction:\nhi\n\n### Response:\n") == ()


def test_a_prompt_without_the_answers_beginning(facts: Callable[..., Facts]) -> None:
    asked = "<|im_start|>user\nhi<|im_end|>\n"
    found = only(lint_ending(facts(), asked))
    assert (found.level, found.code) == ("warning", "no-generation-prompt")
    assert "'<|im_start|>assistant'" in found.advice
    assert lint_ending(facts(), f"{asked}<|im_start|>assistant\n") == ()
    assert lint_ending(facts(), "hi") == ()
    for template in (None, "{% for %}", load_chat_template("llama-2")):
        assert lint_ending(facts(template=template), asked) == ()


# ---- in an LLM


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The codes that were logged since the last call, in a process that has said nothing yet."""
    _said.clear()
    caplog.set_level(logging.WARNING, "enginewright.runtime.text.prompt_warnings")

    def take() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line.rpartition("[")[2].rstrip("]") for line in lines]

    return take


GREEDY = SamplingParams(temperature=0, max_tokens=1)


def test_an_llm_warns_once_in_a_process(
    tiny_artifact: Path, logged: Callable[[], list[str]]
) -> None:
    for expected in (["model-defaults", "double-bos"], []):
        with LLM(tiny_artifact, threads=1) as llm:
            llm.generate("Hello", GREEDY)
            llm.generate("Hello")
            llm.generate(["<s>Hello", "<s>again"], GREEDY)
            llm.chat([{"role": "user", "content": "hi"}], GREEDY)
            assert logged() == expected


def test_an_llm_warns_of_its_artifact_and_of_plain_text(
    make_tiny: Callable[..., Path],
    manifest_writer: Callable[..., Manifest],
    logged: Callable[[], list[str]],
) -> None:
    folder = make_tiny("[INST]{{ messages[0].content }}")
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}', "utf-8")
    stated = parse_manifest((folder / "manifest.json").read_text("utf-8"), "manifest")
    manifest_writer(folder, stated.engines[0], eos_token_ids=(5, EOS))
    with LLM(folder, threads=1) as llm:
        assert logged() == ["eos-disagree"]
        llm.chat([{"role": "user", "content": "hi"}], GREEDY)
        llm.generate("[INST]hi", GREEDY)
        assert logged() == []
        llm.generate("hi", GREEDY)
        assert logged() == ["not-chat-formatted"]


def test_an_llm_is_quiet_about_a_base_model(
    make_tiny: Callable[..., Path], logged: Callable[[], list[str]]
) -> None:
    with LLM(make_tiny(template=None), threads=1) as llm:
        llm.generate("Hello", GREEDY)
    assert logged() == []


def test_the_docs_list_every_finding_and_every_template() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "chat-templates.md").read_text("utf-8")
    source = Path(linter.__file__).read_text("utf-8")
    found = set(re.findall(r'"(?:error|warning|note)",\s+"([a-z]+-[a-z-]+)"', source))
    found |= set(re.findall(r'Finding\("error", "([a-z-]+)"', source))
    assert len(found) >= 12
    for code in found:
        row = rf"^\| `{code}`( \*)? \| (error|warning|note) \|"
        assert re.search(row, page, re.MULTILINE), code
    for name in named_templates():
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), name
