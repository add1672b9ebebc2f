"""Chat templates: the same text as transformers, and clear refusals of wrong messages."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from enginewright.runtime.errors import ChatTemplateError, PromptError
from enginewright.runtime.text.chat import ChatTemplate

transformers = pytest.importorskip("transformers")

BOS, EOS = "<s>", "</s>"

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if tools is not none %}
    {%- set system_message = "Tools: " %}
    {%- for t in tools %}
        {%- set system_message = system_message ~ (t | tojson(indent=4)) ~ "\\n\\n" %}
    {%- endfor %}
{%- elif messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", ' }}
            {{- '"parameters": ' + call.function.arguments | tojson + "}" }}
        {%- endfor %}
        {{- "<|eom_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages if message.role in ("user", "assistant") %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user and assistant!") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}
{%- macro shown(content) -%}
    {%- if content is string -%}
        {{ content | trim }}
    {%- elif content is iterable -%}
        {%- for item in content -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + shown(message['content']) }}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

QWEN3 = """\
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not (
        message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is string %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- generation %}
    {%- if message.role == "assistant" and loop.index0 > ns.last %}
        {{- '<think>' + reasoning.strip('\\n') + '</think>' + content }}
    {%- else %}
        {{- message.role ~ ':' ~ content }}
    {%- endif %}
    {%- endgeneration %}
    {%- if loop.index0 > 90 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}
    {{- '<think></think>' }}
{%- endif %}
{{ messages | map(attribute='role') | unique | join(', ') }}
{{ {'b': [1, 2.5, none, true], 'ä': '<"&>'} | tojson }}
{{ messages[0].content | upper | replace('A', '4') }}
{{ "%05.1f|%s" | format(3.14159, 'x') }} {{ "{:>5}".format("ab") }} {{ [3, 1, 2] | sort | first }}
{{ dict(a=1, **{'b': 2}) | dictsort }} {{ range(5) | sum }} {{ 2 ** 10 }} {{ "ab" * 3 }}
{{ 7 // 2 }} {{ 7 % 4 }} {{ -7 / 2 }} {{ 'a' ~ 1 ~ none }} {{ missing }}{{ 'x' | indent(4, true) }}
{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }} {{ loop.length }}{% else %}none{% endfor %}
{% for x in [] %}{% else %}empty{% endfor %} {{ [1, 2, 3, 4][1:3] }} {{ (1, 2) }} {{ ns }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "llama 3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "qwen 3": QWEN3.replace(" {{ ns }}", ""),
}
TALK = [
    {"role": "user", "content": " Hello, wörld! \n"},
    {"role": "assistant", "content": "<think>hm</think>\nHi <&> 'there'"},
    {"role": "user", "content": "a\tb {{ not a template }} {% raw"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"ü": ["<", 1]}}}]


def from_transformers(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    backend = Backend(models.WordLevel({BOS: 0, EOS: 1}, BOS))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS
    )
    kwargs.setdefault("add_generation_prompt", True)
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, **kwargs
    )
    return str(rendered)


def render(source: str, messages: Any, **kwargs: Any) -> str:
    return ChatTemplate(source, BOS, EOS).render(messages, **kwargs)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("messages", [TALK, SYSTEM + TALK, TALK[:1]])
@pytest.mark.parametrize("kwargs", [{}, {"add_generation_prompt": False}, {"tools": TOOLS}])
def test_equals_transformers(
    family: str, messages: list[dict[str, Any]], kwargs: dict[str, Any]
) -> None:
    source = TEMPLATES[family]
    assert render(source, messages, **kwargs) == from_transformers(source, messages, **kwargs)


@settings(max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text()}
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_equals_transformers(messages: list[dict[str, Any]]) -> None:
    for family in ("chatml", "llama 3", "gemma", "qwen 3"):
        source = TEMPLATES[family]
        assert render(source, messages) == from_transformers(source, messages)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "reasoning": "because"},
        {"role": "assistant", "content": "x", "thinking": "because", "reasoning_content": "so"},
        {"role": "assistant", "content": "x", "reasoning_content": None, "thinking": "t"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ],
)
def test_other_fields_equal_transformers(message: dict[str, Any]) -> None:
    source = "{% for m in messages %}{{ m }}{{ m.content is defined }}{% endfor %}"
    messages = [*TALK, message]
    assert render(source, messages) == from_transformers(source, messages)


def test_tool_calls_equal_transformers() -> None:
    call = {"function": {"name": "now", "arguments": {"zone": "<Ö>", "n": 1}}}
    messages = [*TALK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert render(LLAMA3, messages) == from_transformers(LLAMA3, messages)


def test_keyword_arguments_reach_the_template() -> None:
    source = TEMPLATES["qwen 3"]
    assert render(source, TALK, enable_thinking=False) == from_transformers(
        source, TALK, enable_thinking=False
    )
    assert render("{{ date_string }}{{ bos_token }}", TALK, date_string="d", bos_token="B") == "dB"


def test_tokens_that_the_model_lacks_print_nothing() -> None:
    source = "[{{ bos_token }}{{ eos_token is defined }}]"
    assert ChatTemplate(source).render(TALK) == "[False]"


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%%')}}", TALK) == "%"


def test_the_messages_are_left_alone_and_rendering_repeats() -> None:
    template = ChatTemplate(GEMMA, BOS, EOS)
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert template.render(messages) == template.render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


# ---- content in parts

PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
    }
]


def test_parts_reach_a_template_that_loops_over_them() -> None:
    assert render(GEMMA, PARTS) == from_transformers(GEMMA, PARTS)
    assigned = "{% for m in messages %}{% set c = m['content'] %}{% set d = c %}\
{% for p in d %}<{{ p.text }}>{% endfor %}{% endfor %}"
    assert render(assigned, PARTS) == "<one ><two>"


def test_parts_are_joined_for_a_template_that_takes_strings() -> None:
    joined = [{"role": "user", "content": "one \ntwo"}]
    for source in (CHATML, LLAMA3, TEMPLATES["mistral"]):
        assert render(source, PARTS) == render(source, joined)
    split = (
        "{% for m in messages %}{% for w in m.content.split() %}<{{ w }}>{% endfor %}{% endfor %}"
    )
    assert render(split, PARTS) == "<one><two>"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "type 'image_url'"),
        ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "messages[1].content[1]"),
        ([{"type": "text", "text": 3}], "text must be text"),
        ([{"text": "a"}], "must be"),
        (["a"], "must be"),
        (7, "must be text or a list"),
        ({"type": "text", "text": "a"}, "must be text or a list"),
        (None, "no content"),
        (object(), "holds <object"),
        (b"bytes", "holds b'bytes'"),
    ],
)
def test_wrong_content_is_refused(content: object, complaint: str) -> None:
    with pytest.raises(PromptError) as caught:
        render(CHATML, [TALK[0], {"role": "user", "content": content}])
    assert complaint in str(caught.value)
    assert "messages[1]" in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        {"role": "user", "content": "x"},
        None,
        ["hello"],
        [{"content": "x"}],
        [{"role": "", "content": "x"}],
        [{"role": 3, "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": "x", 5: "y"}],
    ],
)
def test_what_is_no_conversation_is_refused(messages: object) -> None:
    with pytest.raises(PromptError, match="messages"):
        render(CHATML, messages)


def test_data_without_end_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PromptError, match="deep"):
        render(CHATML, TALK, tools=loop)


def test_subclasses_of_plain_types_are_made_plain() -> None:
    class Role(enum.StrEnum):
        USER = "user"

    message = {"role": Role.USER, "content": "x"}
    assert render("{{ messages }}", [message]) == "[{'role': 'user', 'content': 'x'}]"


# ---- templates that are wrong


def test_raise_exception_gives_its_message() -> None:
    with pytest.raises(ChatTemplateError, match="refuses the messages: Conversation roles must"):
        render(MISTRAL, [TALK[0], TALK[0]])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("a\n{% for %}", "line 2"),
        ("{{ messages | surprise }}", "surprise"),
        ("\n\n{{ messages[0].nothing.at_all }}", "line 3"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "line 1"),
        ("{{ messages.foo() }}", "no attribute 'foo'"),
        ("{% include 'x' %}", "loader"),
        ("{% import 'x' as y %}", "loader"),
        ("{% extends 'x' %}", "loader"),
        ("{{ " + "9" * 5000 + " }}", "digits"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "nested"),
        ("x" * 300_000, "300000 characters"),
    ],
)
def test_a_template_that_fails_says_where(source: str, complaint: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render(source, TALK)
    assert complaint in str(caught.value)
