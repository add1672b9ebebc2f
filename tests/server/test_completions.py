"""POST /v1/completions, by OpenAI's own client, beside what the offline API gives."""

from __future__ import annotations

import openai
import pytest

from enginewright.runtime import LLM, BeamSearchParams, SamplingParams

PROMPT = "It was the best of"


def test_the_text_is_that_of_the_offline_api(client: openai.OpenAI, offline: LLM) -> None:
    for seed in (1, 2):
        answer = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=12, seed=seed, temperature=0.8
        )
        params = SamplingParams(max_tokens=12, seed=seed, temperature=0.8)
        (expected,) = offline.generate(PROMPT, params, use_tqdm=False)

        assert answer.choices[0].text == expected.outputs[0].text
        assert answer.choices[0].finish_reason == expected.outputs[0].finish_reason
        assert answer.object == "text_completion"
        assert answer.model == "tiny"
        assert answer.id.startswith("cmpl-")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
        assert answer.usage.completion_tokens == len(expected.outputs[0].token_ids)


def test_without_max_tokens_it_is_sixteen(client: openai.OpenAI) -> None:
    body = {"ignore_eos": True}
    for extra in ({}, {"max_tokens": None}):
        answer = client.completions.create(model="tiny", prompt=PROMPT, extra_body=body, **extra)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 16
        assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_as_texts_ids_and_lists_of_either(
    client: openai.OpenAI, offline: LLM, stream: bool
) -> None:
    ids = offline.get_tokenizer().encode(PROMPT)
    forms = {"text": PROMPT, "ids": ids, "texts": [PROMPT, "Call me"], "lists": [ids, ids[:2]]}
    params = SamplingParams(max_tokens=6, temperature=0)
    for form in forms.values():
        asked = {"model": "tiny", "prompt": form, "max_tokens": 6, "temperature": 0}
        expected = [each.outputs[0].text for each in offline.generate(form, params, use_tqdm=False)]
        if stream:
            texts = [""] * len(expected)
            for chunk in client.completions.create(stream=True, **asked):
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
        else:
            texts = [each.text for each in client.completions.create(**asked).choices]
        assert texts == expected


def test_n_outputs_of_each_prompt_have_places_in_order(client: openai.OpenAI, offline: LLM) -> None:
    answer = client.completions.create(
        model="tiny", prompt=[PROMPT, "Call me"], n=3, seed=5, max_tokens=5
    )
    params = SamplingParams(n=3, seed=5, max_tokens=5)
    expected = offline.generate([PROMPT, "Call me"], params, use_tqdm=False)

    assert [each.index for each in answer.choices] == list(range(6))
    texts = [each.text for output in expected for each in output.outputs]
    assert [each.text for each in answer.choices] == texts
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(each.prompt_token_ids) for each in expected)


def test_echo_with_logprobs_is_what_an_evaluation_reads(
    client: openai.OpenAI, offline: LLM
) -> None:
    ids = offline.get_tokenizer().encode(PROMPT)
    answer = client.completions.create(
        model="tiny", prompt=ids, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1
    )
    params = SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0)
    (expected,) = offline.generate([ids], params, use_tqdm=False)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert expected.prompt_logprobs is not None

    assert found.token_logprobs[0] is None
    assert len(found.token_logprobs) == len(ids) + 1
    for place, token in enumerate(ids[1:], 1):
        scores = expected.prompt_logprobs[place]
        assert scores is not None
        assert found.token_logprobs[place] == pytest.approx(scores[token].logprob, abs=1e-5)
        best = max(entry.logprob for entry in scores.values())
        assert max(found.top_logprobs[place].values()) == pytest.approx(best, abs=1e-5)
    assert answer.choices[0].text.startswith(PROMPT)


@pytest.mark.parametrize("stream", [False, True])
def test_text_offsets_point_into_the_text(client: openai.OpenAI, stream: bool) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 2}
    for echo in (False, True):
        if stream:
            chunks = list(client.completions.create(stream=True, echo=echo, **asked))
            text = "".join(chunk.choices[0].text for chunk in chunks)
            parts = [chunk.choices[0].logprobs for chunk in chunks]
        else:
            answer = client.completions.create(echo=echo, **asked)
            text, parts = answer.choices[0].text, [answer.choices[0].logprobs]
        tokens = [token for part in parts if part for token in part.tokens or ()]
        offsets = [offset for part in parts if part for offset in part.text_offset or ()]
        assert len(tokens) == len(offsets)
        for token, offset in zip(tokens, offsets, strict=True):
            if token.isascii() and token != "</s>":
                assert text[offset : offset + len(token)] == token


def test_only_the_prompt_is_scored_with_max_tokens_0(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0
    )

    assert answer.choices[0].text == PROMPT
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or ()) == PROMPT


def test_tokens_as_ids_and_the_ids_themselves(client: openai.OpenAI, offline: LLM) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=3,
        logprobs=0,
        temperature=0,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    )
    choice = answer.choices[0].model_dump()

    assert choice["prompt_token_ids"] == offline.get_tokenizer().encode(PROMPT)
    assert choice["logprobs"]["tokens"] == [f"token_id:{each}" for each in choice["token_ids"]]


def test_stop_bias_and_the_fields_of_vllm(client: openai.OpenAI, offline: LLM) -> None:
    extra = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2, "stop_token_ids": [60]}
    answer = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=30,
        seed=3,
        stop=["e"],
        logit_bias={"70": 4.0},
        extra_body={**extra, "include_stop_str_in_output": True, "min_tokens": 2},
    )
    params = SamplingParams(
        max_tokens=30,
        seed=3,
        stop=["e"],
        logit_bias={70: 4.0},
        include_stop_str_in_output=True,
        min_tokens=2,
        **extra,
    )
    (expected,) = offline.generate(PROMPT, params, use_tqdm=False)
    choice = answer.choices[0].model_dump()

    assert choice["text"] == expected.outputs[0].text
    assert choice["stop_reason"] == expected.outputs[0].stop_reason


@pytest.mark.parametrize("stream", [False, True])
def test_beams_are_those_of_the_offline_api(
    client: openai.OpenAI, offline: LLM, stream: bool
) -> None:
    extra = {"use_beam_search": True, "length_penalty": 0.7}
    asked = {"model": "tiny", "prompt": PROMPT, "n": 3, "max_tokens": 6, "extra_body": extra}
    (expected,) = offline.beam_search(PROMPT, BeamSearchParams(3, 6, length_penalty=0.7))
    if stream:
        texts = [""] * 3
        for chunk in client.completions.create(stream=True, **asked):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        texts = [each.text for each in client.completions.create(**asked).choices]

    assert texts == [each.generated_text for each in expected.sequences]


def test_prompt_logprobs_are_by_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=[65, 66, 67], max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    scores = answer.choices[0].model_dump()["prompt_logprobs"]

    assert scores[0] is None
    assert [list(each) for each in scores[1:]] == [["66"], ["67"]]


def test_prompt_logprobs_are_told_beside_an_echo(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    extra = {"prompt_logprobs": 2}
    plain = client.completions.create(**asked, extra_body=extra).choices[0].model_dump()
    echoed = client.completions.create(**asked, echo=True, extra_body=extra).choices[0].model_dump()
    assert plain["prompt_logprobs"] == echoed["prompt_logprobs"]
    assert len(plain["prompt_logprobs"]) > 1


@pytest.mark.parametrize("asked", [None, 1, 2])
def test_named_tokens_are_told_whatever_their_rank(
    client: openai.OpenAI, asked: int | None
) -> None:
    extra = {"logprob_token_ids": [5, 6], "return_tokens_as_token_ids": True}
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=2, logprobs=asked, extra_body=extra
    )
    scored = answer.choices[0].logprobs
    assert scored is not None
    assert scored.top_logprobs is not None
    assert all({"token_id:5", "token_id:6"} <= set(each) for each in scored.top_logprobs)


def test_a_long_prompt_is_cut_where_that_is_asked_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt="a" * 2000,
        max_tokens=4,
        extra_body={"truncate_prompt_tokens": -1, "ignore_eos": True},
    )

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 596
    assert answer.usage.completion_tokens == 4
