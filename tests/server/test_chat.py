"""POST /v1/chat/completions, by OpenAI's own client, beside what the offline API gives."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from enginewright.runtime import LLM, SamplingParams

USER: Any = [{"role": "user", "content": "Call me Ishmael."}]


def test_the_answer_is_that_of_the_offline_api(client: openai.OpenAI, offline: LLM) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=USER, max_completion_tokens=9, seed=4
    )
    (expected,) = offline.chat(USER, SamplingParams(max_tokens=9, seed=4), use_tqdm=False)

    assert answer.choices[0].message.content == expected.outputs[0].text
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_bound(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=USER, extra_body={name: 3, "ignore_eos": True}
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_without_a_bound_there_is_all_the_room_that_is_left(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=USER, seed=1, extra_body={"ignore_eos": True}
    )

    assert answer.usage is not None
    assert answer.usage.total_tokens == 600
    assert answer.choices[0].finish_reason == "length"


def test_contents_as_parts_and_the_newer_role(client: openai.OpenAI, offline: LLM) -> None:
    parts = [{"type": "text", "text": "Call"}, {"type": "refusal", "refusal": "me"}]
    messages: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts},
    ]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=5, temperature=0
    )
    same: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Call\nme"},
    ]
    (expected,) = offline.chat(same, SamplingParams(max_tokens=5, temperature=0), use_tqdm=False)

    assert answer.choices[0].message.content == expected.outputs[0].text


def test_the_last_message_is_gone_on_with_and_echoed(client: openai.OpenAI, offline: LLM) -> None:
    messages: Any = [*USER, {"role": "assistant", "content": "It was"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=5, temperature=0, extra_body=extra
    )
    (expected,) = offline.chat(
        messages,
        SamplingParams(max_tokens=5, temperature=0),
        use_tqdm=False,
        add_generation_prompt=False,
        continue_final_message=True,
    )

    assert answer.choices[0].message.content == "It was" + expected.outputs[0].text


def test_logprobs_are_ordered_and_have_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=6, seed=2, logprobs=True, top_logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert answer.usage is not None

    assert len(found.content) == answer.usage.completion_tokens
    for each in found.content:
        values = [top.logprob for top in each.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert each.logprob <= values[0]
        assert bytes(each.bytes or ()).decode() == each.token


def test_a_stream_joined_is_the_answer(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": USER, "max_tokens": 20, "seed": 6, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts, roles, reasons = ["", ""], [], {}
    for chunk in client.chat.completions.create(stream=True, **asked):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason

    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert roles == ["assistant", "assistant"]


def test_usage_comes_in_the_last_chunk_or_in_each(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": USER, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    none = list(client.chat.completions.create(stream=True, **asked))
    assert all(chunk.usage is None for chunk in none)

    last = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    )
    assert [chunk.usage is None for chunk in last] == [True] * (len(last) - 1) + [False]
    assert last[-1].choices == []
    assert last[-1].usage is not None
    assert last[-1].usage.completion_tokens == 6

    wanted: Any = {"include_usage": True, "continuous_usage_stats": True}
    each = list(client.chat.completions.create(stream=True, stream_options=wanted, **asked))
    counts = [chunk.usage.completion_tokens for chunk in each if chunk.usage]
    assert len(counts) == len(each)
    assert counts == sorted(counts)
    assert counts[-1] == 6


def test_beams_of_a_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=USER,
        n=2,
        max_tokens=4,
        extra_body={"use_beam_search": True},
        stream=True,
    )
    texts = {0: "", 1: ""}
    for chunk in answer:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""

    assert len(set(texts.values())) == 2


class Person(BaseModel):
    name: Literal["Ishmael", "Ahab"]
    age: Literal[1, 2, 3]


def test_a_pydantic_model_is_parsed(client: openai.OpenAI, offline: LLM) -> None:
    pytest.importorskip("llguidance")
    vocabulary = offline.get_tokenizer().vocabulary
    blank = {str(vocabulary[token]): -100 for token in ("Ġ", "Ċ", "č", "ĉ")}  # it loves them
    answer = client.chat.completions.parse(
        model="tiny",
        messages=USER,
        response_format=Person,
        seed=1,
        max_tokens=200,
        logit_bias=blank,
    )

    assert isinstance(answer.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    ("form", "check"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, lambda text: text.isdigit()),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}},
            lambda text: json.loads(text) == 7,
        ),
        ({"response_format": {"type": "text"}}, lambda text: True),
    ],
)
def test_forms(client: openai.OpenAI, form: dict[str, Any], check: Any) -> None:
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(
        model="tiny", messages=USER, seed=1, max_tokens=60, extra_body=form
    )

    assert check(answer.choices[0].message.content)
