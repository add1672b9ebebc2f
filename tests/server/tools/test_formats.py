"""Every format of tool calls: real outputs, rubbish, and any way of cutting them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime.errors import RequestError
from enginewright.server.tools.forced import NamedParser, RequiredParser
from enginewright.server.tools.formats import (
    TOOL_FORMATS,
    choose_tool_parser,
    make_tool_parser,
    tools_need_special_tokens,
)
from enginewright.server.tools.parser import ToolParser, collect

Calls = list[tuple[str, dict[str, Any]]]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "where": {"type": "object"},
                "any": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
        },
    },
}
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
ROME = '{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}'
BOTH: Calls = [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome", "days": 3})]

EXAMPLES: list[tuple[str, str, str, Calls]] = [
    ("hermes", f"<tool_call>\n{PARIS}\n</tool_call>", "", BOTH[:1]),
    (
        "hermes",
        f"Let me look.\n\n<tool_call>\n{PARIS}\n</tool_call>\n<tool_call>\n{ROME}\n</tool_call>\n",
        "Let me look.",
        BOTH,
    ),
    ("hermes", f"<tool_call>{PARIS}", "", BOTH[:1]),  # the closing tag was the end token
    ("hermes", f"<tool_call>{PARIS}</tool_call> Done. ", "Done. ", BOTH[:1]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": "a </tool_call> \\" }{"}}</tool_call>',
        "",
        [("f", {"x": 'a </tool_call> " }{'})],
    ),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}', "", [("f", {"x": 1})]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}',
        "",
        [("f", {"x": "\ud800"})],
    ),
    (
        "qwen3_coder",
        "I'll check.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nPar is\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n<parameter=metric>\nTrue\n</parameter>\n"
        '<parameter=where>\n{"x": [1]}\n</parameter>\n<parameter=any>\nnull\n</parameter>\n'
        "<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>",
        "I'll check.",
        [
            (
                "get_weather",
                {
                    "city": "Par is",
                    "days": 2,
                    "metric": True,
                    "where": {"x": [1]},
                    "any": None,
                    "other": "7",
                },
            )
        ],
    ),
    (
        "qwen3_coder",
        "<function=get_weather>\n<parameter=city>\nA\n\nB <b>\n</parameter>\n</function>",
        "",
        [("get_weather", {"city": "A\n\nB <b>"})],
    ),
    ("llama3_json", '{"name": "f", "parameters": {"x": 1}}', "", [("f", {"x": 1})]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"y": [2]}}',
        "",
        [("f", {}), ("g", {"y": [2]})],
    ),
    (
        "llama3_json",
        '{"type": "function", "name": "f", "parameters": {"x": 1}}',
        "",
        [("f", {"x": 1})],
    ),
    ("mistral", f"[TOOL_CALLS] [{PARIS}, {ROME}]", "", BOTH),
    (
        "mistral",
        'Sure.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g{}',
        "Sure.",
        [("f", {"x": 1}), ("g", {})],
    ),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abc123xyz[ARGS]{"x": 1}', "", [("f", {"x": 1})]),
    ("granite", f"<|tool_call|>[{PARIS}, {ROME}]", "", BOTH),
    ("granite", f"<tool_call>{PARIS}</tool_call>", "", BOTH[:1]),
    ("phi4_mini_json", f"functools[{PARIS}, {ROME}]", "", BOTH),
    ("phi4_mini_json", f"<|tool_call|>[{PARIS}]<|/tool_call|>", "", BOTH[:1]),
    (
        "pythonic",
        "[get_weather(city='Paris'), a.b(x=[1, {'y': None}], z=-1.5, s=\"]('\")]",
        "",
        [
            ("get_weather", {"city": "Paris"}),
            ("a.b", {"x": [1, {"y": None}], "z": -1.5, "s": "]('"}),
        ],
    ),
    ("llama4_pythonic", "<|python_start|>[f(x=True)]<|python_end|>", "", [("f", {"x": True})]),
]

NO_CALLS = [
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>"),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": '),
    ("hermes", '<tool_call>{"name": "f"]</tool_call> and more'),
    ("hermes", "<tool_call>" + '{"a":' * 100 + "1" + "}" * 100),
    ("hermes", "a < b <tool_cal <<tool_call"),
    ("hermes", " leading and trailing \n\n"),
    ("hermes", " \n "),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=x>\n1\n</function>\n</tool_call>"),
    ("qwen3_coder", "<tool_call>what</tool_call>"),
    ("qwen3_coder", "<function=f> without an end"),
    ("llama3_json", '{"name": "Bob", "age": 7}'),
    ("llama3_json", 'Here: {"name": "f", "parameters": {}}'),
    ("llama3_json", "{"),
    ("mistral", "[TOOL_CALLS] nothing [ARGS"),
    ("mistral", "[TOOL_CALLS]a b{}"),
    ("mistral", '[TOOL_CALLS]f{"x": NaN}'),
    ("phi4_mini_json", "use functools.reduce or functools[1]"),
    ("pythonic", "[1, 2, 3]"),
    ("pythonic", "[f(1)]"),
    ("pythonic", "[f(**{'a': 1})]"),
    ("pythonic", "[f(x=open('a'))]"),
    ("pythonic", "[" * 5000),
]

_PIECES = (
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=x>", "</parameter>",
    "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call|>", "functools[", "<|python_start|>",
    PARIS, '{"name": "f", "parameters": {"x": "\\""}}', "[f(x=1)]", "[", "]", "{", "}", ";", ",",
    '"', "\\", "'", " ", "\n", "f", "<", "[TOOL", "é", "g(",
)  # fmt: skip


def parse(parser: ToolParser, *pieces: str) -> tuple[str, Calls]:
    content, calls = collect([*map(parser.feed, pieces), parser.finish()])
    assert len({call.id for call in calls}) == len(calls)
    return content, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(("name", "text", "content", "calls"), EXAMPLES)
def test_examples_whole_and_by_character(name: str, text: str, content: str, calls: Calls) -> None:
    assert parse(make_tool_parser(name, [WEATHER]), text) == (content, calls)
    assert parse(make_tool_parser(name, [WEATHER]), *text) == (content, calls)


@pytest.mark.parametrize(("name", "text"), NO_CALLS)
def test_what_is_no_call_is_content_to_the_last_character(name: str, text: str) -> None:
    assert parse(make_tool_parser(name), text) == (text, [])
    assert parse(make_tool_parser(name), *text) == (text, [])


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS))
@given(data=st.data())
def test_no_way_of_cutting_changes_the_result(name: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(_PIECES), max_size=14)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(make_tool_parser(name, [WEATHER]), text)
    assert parse(make_tool_parser(name, [WEATHER]), *pieces) == whole
    assert parse(make_tool_parser(name, [WEATHER]), *text) == whole
    if not whole[1]:
        assert whole[0] == text


def test_a_call_after_a_broken_one_is_found() -> None:
    text = f'<tool_call>{{"name": "f", </tool_call>\n<tool_call>{PARIS}</tool_call>'
    content, calls = parse(make_tool_parser("hermes"), *text)
    assert content == '<tool_call>{"name": "f", </tool_call>'
    assert calls == BOTH[:1]


def test_text_is_not_held_longer_than_it_must() -> None:
    parser = make_tool_parser("hermes")
    assert parser.feed("Hello <b").content == "Hello <b"
    assert parser.feed(" a <").content == " a"
    assert parser.feed("tool").content == ""
    assert parser.feed("s> x").content == " <tools> x"
    assert not parser.feed("\n")
    assert not parser.feed(f"<tool_call>{PARIS}")
    (call,) = parser.feed("</tool_call>").calls
    assert (call.index, call.name, call.arguments) == (0, "get_weather", '{"city": "Paris"}')
    assert call.id is not None
    assert call.id.startswith("call_")


def test_long_arguments_cost_linear_time() -> None:
    """Each character is looked at a bounded number of times, however small the pieces are."""
    parser = make_tool_parser("hermes")
    body = "x" * 200_000
    text = f'<tool_call>{{"name": "f", "arguments": {{"x": "{body}"}}}}</tool_call>'
    _, calls = parse(parser, *(text[at : at + 40] for at in range(0, len(text), 40)))
    assert calls == [("f", {"x": body})]


def test_mistral_ids_are_what_its_templates_take() -> None:
    _, calls = collect([make_tool_parser("mistral").feed('[TOOL_CALLS]f[ARGS]{"x": 1}')])
    assert len(calls[0].id) == 9
    assert calls[0].id.isalnum()


def test_demanded_calls() -> None:
    text = '[{"name": "f", "parameters": {"x": 1}}, {"name": "g", "parameters": {}}]'
    assert parse(RequiredParser(), *text) == ("", [("f", {"x": 1}), ("g", {})])
    assert parse(RequiredParser(), *text[:-9]) == (text[:-9], [])
    assert parse(NamedParser("f"), *'{"x": 1}') == ("", [("f", {"x": 1})])
    assert parse(NamedParser("f")) == ("", [])


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("<tool_call>\n<function=example>\n<parameter=x>", "qwen3_coder"),
        ('<tool_call>\n{"name": <function-name>}\n</tool_call>', "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{- '<|python_tag|>' + tool_call.name }}", "llama3_json"),
        ("<|tool_call|> <|/tool_call|>", "phi4_mini_json"),
        ("write <|tool_call|> followed by a list", "granite"),
        ("{{ message.content }}", None),
        (None, None),
    ],
)
def test_choice_by_template(shown: str | None, name: str | None) -> None:
    assert choose_tool_parser(shown) == name


def test_special_tokens_are_kept_where_a_marker_is_one() -> None:
    assert tools_need_special_tokens("mistral", {"[TOOL_CALLS]", "</s>"})
    assert not tools_need_special_tokens("hermes", {"<|im_end|>"})


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RequestError, match="'herms' is not legal: there are granite, hermes"):
        make_tool_parser("herms")
