"""Where templates come from, what is refused, and what LLM.chat hands to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import (
    LLM,
    ChatTemplateError,
    PromptError,
    RequestError,
    SamplingParams,
    load_chat_template,
)
from enginewright.runtime.text.chat import ChatTemplate
from enginewright.runtime.text.templates import named_templates, special_tokens

GREEDY = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
ASK = [{"role": "user", "content": "hi"}]
OPEN = [*ASK, {"role": "assistant", "content": "Well, "}]


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


# ---- the lookup


def test_none_stays_none() -> None:
    assert load_chat_template(None) is None
    assert load_chat_template(None, is_literal=True) is None


def test_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own.jinja", "chatml", "{braces}"):
        (tmp_path / name).write_text(f"file {name}", "utf-8")
        assert load_chat_template(name) == f"file {name}"
        assert load_chat_template(tmp_path / name) == f"file {name}"


@pytest.mark.parametrize(
    "literal", ["{{ x }}", "a}", "two\nlines", "{" * 5000, "{{ '/no/such/file' }}", "{\0"]
)
def test_braces_and_newlines_make_a_literal(literal: str) -> None:
    assert load_chat_template(literal) == literal


def test_a_literal_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jinja"
    path.write_text("from the file", "utf-8")
    assert load_chat_template(str(path), is_literal=True) == str(path)
    assert load_chat_template("chatml", is_literal=True) == "chatml"
    with pytest.raises(ChatTemplateError, match="is_literal=True"):
        load_chat_template(path, is_literal=True)


@pytest.mark.parametrize("name", named_templates())
def test_a_built_in_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = load_chat_template(name)
    assert source is not None
    assert load_chat_template(f"{name}.jinja") == source
    assert load_chat_template(f"template_{name}.jinja") == source
    ChatTemplate(source)


@pytest.mark.parametrize("name", ["missing.jinja", "../chatml", "chatml.", "/no/such", "a\0b"])
def test_what_is_nothing_names_what_was_tried(name: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        load_chat_template(name)
    said = str(caught.value)
    assert f"{name!r} looks like a file path, but it failed to be opened. Tried: " in said
    assert "alpaca, chatml, deepseek" in said


def test_a_path_is_never_a_name_or_a_literal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("chatml"), Path("{{ x }}"), tmp_path):
        with pytest.raises(ChatTemplateError, match="failed to be opened"):
            load_chat_template(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ChatTemplateError, match="utf-8"):
        load_chat_template(tmp_path / "bytes")


@pytest.mark.parametrize("value", ["", 5, b"{{ x }}", ["chatml"]])
def test_what_cannot_be_a_template_is_refused(value: Any) -> None:
    with pytest.raises(ChatTemplateError, match=r"chat_template=.* is not legal"):
        load_chat_template(value)


def test_special_tokens_are_text_or_objects() -> None:
    config = {"bos_token": "<s>", "pad_token": {"content": "<p>"}, "eos_token": None, "x": "y"}
    assert special_tokens(config) == {"bos_token": "<s>", "pad_token": "<p>"}
    rendered = ChatTemplate("{{ bos_token }}{{ pad_token }}", **special_tokens(config)).render(ASK)
    assert rendered == "<s><p>"


# ---- LLM.chat


def prompt_of(llm: LLM, messages: Any, **kwargs: Any) -> str | None:
    return llm.chat(messages, GREEDY, **kwargs)[0].prompt


def test_a_built_in_template_for_a_model_without_one(make_tiny: Callable[..., Path]) -> None:
    artifact = make_tiny(template=None)
    with LLM(artifact, threads=1) as llm:
        with pytest.raises(ChatTemplateError, match=r"built-in one: alpaca, chatml"):
            llm.chat(ASK, GREEDY)
        assert prompt_of(llm, ASK, chat_template="zephyr") == "<|user|>\nhi</s>\n<|assistant|>\n"
    with LLM(artifact, threads=1, chat_template="alpaca") as llm:
        assert prompt_of(llm, ASK) == "### Instruction:\nhi\n\n### Response:\n"


def test_the_last_message_is_continued(llm: LLM) -> None:
    settings: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt_of(llm, OPEN, **settings) == "<s>u:hi\na:Well, "
    (output,) = llm.stream_chat(OPEN, GREEDY, **settings)
    assert output.prompt == "<s>u:hi\na:Well, "
    trimming = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert prompt_of(llm, OPEN, chat_template=trimming, **settings) == "[hi][Well,"
    parts = [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "Well, "}]}]
    for form in ("auto", "string"):
        kwargs = {**settings, "chat_template_content_format": form}
        assert prompt_of(llm, parts, **kwargs) == "<s>u:hi\na:Well, "


PART_BY_PART = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("messages", "template", "said"),
    [
        (OPEN, "{{ messages[0].content }}", "does not write the last message"),
        (OPEN, "{{ messages[-1].content | replace('W', 'w') }}", "does not write the last message"),
        ([*ASK, {"role": "assistant", "tool_calls": [{}]}], None, "the last message has no text"),
        (
            [*ASK, {"role": "assistant", "content": []}],
            PART_BY_PART,
            "the last message has no text",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(
    llm: LLM, messages: Any, template: str | None, said: str
) -> None:
    settings: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(RequestError, match=said):
        llm.chat(messages, GREEDY, chat_template=template, **settings)


def test_a_new_message_and_the_last_one_exclude_each_other(llm: LLM) -> None:
    for chat in (llm.chat, llm.stream_chat):
        with pytest.raises(RequestError, match=r"both set.*add_generation_prompt=False"):
            chat(OPEN, GREEDY, continue_final_message=True)


SHOW = "{% for m in messages %}{{ m.content }}{% endfor %}"
PARTS = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("one", "two")]}]


@pytest.mark.parametrize(
    ("messages", "form", "expected"),
    [
        (ASK, "auto", "hi"),
        (ASK, "string", "hi"),
        (ASK, "openai", "[{'type': 'text', 'text': 'hi'}]"),
        (PARTS, "auto", "one\ntwo"),
        (PARTS, "string", "one\ntwo"),
        (
            PARTS,
            "openai",
            "[{'type': 'text', 'text': 'one'}, {'type': 'text', 'text': 'two'}]",
        ),
    ],
)
def test_the_format_of_the_content(llm: LLM, messages: Any, form: str, expected: str) -> None:
    kwargs = {"chat_template": SHOW, "chat_template_content_format": form}
    assert prompt_of(llm, messages, **kwargs) == expected


def test_an_unknown_format_and_an_image_are_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="content_format='json': legal are 'auto', 'string'"):
        llm.chat(ASK, GREEDY, chat_template_content_format="json")  # type: ignore[arg-type]
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(PromptError, match=r"messages\[0\]\.content\[0\] is of type 'image_url'"):
        llm.chat([{"role": "user", "content": [image]}], GREEDY)


def test_tools_and_documents_reach_the_template(llm: LLM) -> None:
    template = "{{ tools | tojson }}{{ documents | tojson }}{{ x }}"
    tools, documents = [{"name": "f"}], [{"title": "a", "text": "b"}]
    kwargs = {"documents": documents, "x": 1}
    prompt = prompt_of(llm, ASK, chat_template=template, tools=tools, chat_template_kwargs=kwargs)
    assert prompt == '[{"name": "f"}][{"title": "a", "text": "b"}]1'


def test_template_kwargs_win_over_the_arguments(llm: LLM) -> None:
    kwargs = {"add_generation_prompt": False, "tools": [{"name": "g"}]}
    template = "{{ tools[0].name }}{{ add_generation_prompt }}"
    prompt = prompt_of(
        llm, ASK, chat_template=template, tools=[{"name": "f"}], chat_template_kwargs=kwargs
    )
    assert prompt == "gFalse"


@pytest.mark.parametrize(
    "kwargs", [{"chat_template": "x"}, {"messages": []}, {"tokenize": True}, [1], {1: 2}, "ab"]
)
def test_wrong_template_kwargs_are_refused(llm: LLM, kwargs: Any) -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs"):
        llm.chat(ASK, GREEDY, chat_template_kwargs=kwargs)


@pytest.mark.parametrize("tools", ["f", {"name": "f"}, [print], ["f"], [1]])
def test_wrong_tools_are_refused(llm: LLM, tools: Any) -> None:
    with pytest.raises(PromptError, match=r"tools=.* a list of dicts, each a function's JSON"):
        llm.chat(ASK, GREEDY, tools=tools)
    with pytest.raises(PromptError, match=r"documents=.* each with a title and a text"):
        llm.chat(ASK, GREEDY, chat_template_kwargs={"documents": tools})


def test_a_message_of_tool_calls_alone_has_empty_content(llm: LLM) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    template = "{% for m in messages %}[{{ m['content'] + '.' }}]{% endfor %}"
    for content in ({}, {"content": None}):
        messages = [*ASK, {"role": "assistant", "tool_calls": [call], **content}]
        assert prompt_of(llm, messages, chat_template=template).endswith("[.]")


def test_arguments_of_tool_calls_may_be_json(llm: LLM) -> None:
    template = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function }}{% endfor %}\
{{ m.tool_calls is defined }};{% endfor %}"

    def prompt(*calls: Any) -> str | None:
        messages = [*ASK, {"role": "assistant", "content": "", "tool_calls": list(calls)}]
        return prompt_of(llm, messages, chat_template=template)

    assert prompt({"function": {"name": "f", "arguments": '{"a": 1}'}}) == (
        "False;{'name': 'f', 'arguments': {'a': 1}}True;"
    )
    assert prompt({"function": {"name": "f", "arguments": {"a": 1}}}) == (
        "False;{'name': 'f', 'arguments': {'a': 1}}True;"
    )
    assert prompt({"function": {"name": "f", "arguments": ""}}) == (
        "False;{'name': 'f', 'arguments': {}}True;"
    )
    assert prompt() == "False;False;"
    for broken in ("{a", "[" * 100_000):
        with pytest.raises(PromptError, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arg"):
            prompt({"function": {"name": "f", "arguments": broken}})
