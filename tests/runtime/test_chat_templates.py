"""The built-in templates: the documented format of each family, and the text transformers makes."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from enginewright.runtime.errors import ChatTemplateError, EnginewrightError
from enginewright.runtime.text.chat import ChatTemplate
from enginewright.runtime.text.templates import load_chat_template, named_templates

transformers = pytest.importorskip("transformers")

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TALK = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How are you?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]

ASKED = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi.\n\n### Response:\nHello.\n\n"
    "### Instruction:\nHow are you?\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "deepseek": "<s>Be brief.<|User|>Hi.<|Assistant|>Hello.<|end▁of▁sentence|>"
    "<|User|>How are you?<|Assistant|>".replace("|", "\uff5c"),
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi.<end_of_turn>\n<start_of_turn>model\n"
    "Hello.<end_of_turn>\n<start_of_turn>user\nHow are you?<end_of_turn>\n<start_of_turn>model\n",
    "granite": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Hi.<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Hello.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>How are you?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST] Hello. </s>"
    "<s>[INST] How are you? [/INST]",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi.[/INST] Hello.</s>[INST] Be brief.\n\nHow are you?[/INST]",
    "phi-3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi.<|end|>\n<|assistant|>\nHello.<|end|>\n"
    "<|user|>\nHow are you?<|end|>\n<|assistant|>\n",
    "qwen": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "vicuna": "<s>Be brief. USER: Hi. ASSISTANT: Hello.</s>USER: How are you? ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi.</s>\n<|assistant|>\nHello.</s>\n"
    "<|user|>\nHow are you?</s>\n<|assistant|>\n",
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather <now> & 'here'.",
        "parameters": {"type": "object", "properties": {"stadt": {"type": "string", "ü": [1.5]}}},
    },
}
CALL = {"id": "abcdefgh1", "function": {"name": "weather", "arguments": {"stadt": "Köln", "n": 1}}}
ANSWERED = [
    TALK[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "grey"}', "tool_call_id": "abcdefgh1"},
    {"role": "assistant", "content": "It is grey."},
]
WITH_TOOLS = ("granite", "llama-3", "mistral", "qwen")
DOCUMENTS = [{"title": "On rain", "text": "It <is> wet."}, {"text": "Ünder a roof it is dry."}]


def source_of(name: str) -> str:
    source = load_chat_template(name)
    assert source is not None
    return source


def render(name: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    return ChatTemplate(source_of(name), **TOKENS).render(messages, **kwargs)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    vocabulary = {token: index for index, token in enumerate(TOKENS.values())}
    backend = Backend(models.WordLevel(vocabulary, "<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)


def check_same_end(
    name: str, tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any
) -> None:
    """Both give the same text, or both refuse the messages."""
    kwargs.setdefault("add_generation_prompt", True)
    try:
        expected = tokenizer.apply_chat_template(
            messages, chat_template=source_of(name), tokenize=False, **kwargs
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        with pytest.raises(EnginewrightError):
            render(name, messages, **kwargs)
    else:
        assert render(name, messages, **kwargs) == expected


def test_every_built_in_template_is_tested() -> None:
    assert set(named_templates()) == set(ASKED)
    assert len(ASKED) >= 8


@pytest.mark.parametrize("name", ASKED)
def test_the_format_is_the_documented_one(name: str) -> None:
    assert render(name, SYSTEM + TALK) == ASKED[name]


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("messages", [TALK, SYSTEM + TALK, TALK[:1], SYSTEM + TALK[:2]])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": [TOOL, TOOL]},
        {"documents": DOCUMENTS},
        {"tools": [TOOL], "documents": DOCUMENTS},
        {"enable_thinking": False},
    ],
    ids=lambda kwargs: "+".join(kwargs) or "plain",
)
def test_equals_transformers(
    name: str, messages: list[dict[str, Any]], kwargs: dict[str, Any], tokenizer: Any
) -> None:
    expected = tokenizer.apply_chat_template(
        messages,
        chat_template=source_of(name),
        tokenize=False,
        **{"add_generation_prompt": True, **kwargs},
    )
    assert render(name, messages, **kwargs) == expected


@settings(max_examples=40)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system", "tool"]),
                "content": st.text(max_size=30),
            },
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_roles_and_text_end_as_in_transformers(
    messages: list[dict[str, Any]], tokenizer: Any
) -> None:
    for name in ASKED:
        check_same_end(name, tokenizer, messages)


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("before", [[], SYSTEM])
def test_tool_calls_equal_transformers(
    name: str, before: list[dict[str, Any]], tokenizer: Any
) -> None:
    messages = [*before, *ANSWERED]
    expected = tokenizer.apply_chat_template(
        messages,
        tools=[TOOL],
        chat_template=source_of(name),
        tokenize=False,
        add_generation_prompt=True,
    )
    rendered = render(name, messages, tools=[TOOL])
    assert rendered == expected
    for shown in ("Weather <now> & 'here'.", '{"stadt": "Köln", "n": 1}', "grey"):
        assert shown in rendered


def test_tool_calls_as_documented() -> None:
    qwen = render("qwen", ANSWERED)
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"stadt": "Köln", '
        '"n": 1}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n{"sky": "grey"}\n'
        "</tool_response><|im_end|>\n" in qwen
    )
    mistral = render("mistral", ANSWERED, tools=[TOOL])
    assert mistral.startswith('<s>[AVAILABLE_TOOLS] [{"type": "function"')
    assert (
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"stadt": "Köln", "n": 1}, '
        '"id": "abcdefgh1"}]</s>[TOOL_RESULTS] {"content": "{\\"sky\\": \\"grey\\"}", '
        '"call_id": "abcdefgh1"}[/TOOL_RESULTS] It is grey.</s>' in mistral
    )
    llama = render("llama-3", ANSWERED)
    assert '{"name": "weather", "parameters": {"stadt": "Köln", "n": 1}}<|eot_id|>' in llama
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n{"sky": "grey"}<|eot_id|>' in llama


def test_two_answers_of_tools_are_one_turn_of_qwen() -> None:
    tool = {"role": "tool", "content": "x"}
    rendered = render("qwen", [TALK[0], tool, tool], add_generation_prompt=False)
    assert rendered.endswith(
        "<|im_start|>user\n<tool_response>\nx\n</tool_response>\n<tool_response>\nx\n"
        "</tool_response><|im_end|>\n"
    )


def test_documents_are_written_by_granite() -> None:
    assert (
        "<|start_of_role|>documents<|end_of_role|>Document 1\nOn rain\nIt <is> wet.\n\n"
        "Document 2\nÜnder a roof it is dry.<|end_of_text|>\n"
        in render("granite", TALK, documents=DOCUMENTS)
    )


def test_qwen_answers_without_thinking() -> None:
    rendered = render("qwen", TALK, enable_thinking=False)
    assert rendered.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ["llama-2", "mistral", "gemma"])
def test_roles_that_do_not_take_turns_are_refused(name: str) -> None:
    with pytest.raises(ChatTemplateError, match="take turns, and user begins"):
        render(name, [TALK[0], TALK[0]])


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("text", ["Well", "Well, ", "  two\nlines \n", "CONTINUE"])
def test_the_last_message_is_left_open_as_by_transformers(
    name: str, text: str, tokenizer: Any
) -> None:
    messages = [*SYSTEM, TALK[0], {"role": "assistant", "content": text}]
    settings = {"add_generation_prompt": False, "continue_final_message": True}
    check_same_end(name, tokenizer, messages, **settings)
    assert render(name, messages, **settings).rstrip().endswith(text.strip())
