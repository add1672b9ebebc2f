"""What LLM's methods take beside prompts and parameters, enqueueing, and joining outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import (
    LLM,
    ArgumentError,
    BeamSearchParams,
    ContextLengthError,
    EnginewrightError,
    PromptError,
    RequestError,
    RequestOutputKind,
    SamplingParams,
    SamplingParamsError,
)

BOS, EOS = 256, 257
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def ids_of(llm: LLM, prompt: Any, **tokenization: Any) -> list[int]:
    (output,) = llm.generate(prompt, GREEDY, tokenization_kwargs=tokenization)
    return output.prompt_token_ids


def test_special_tokens_may_be_left_out_or_added(llm: LLM) -> None:
    with_bos = ids_of(llm, "Hello")
    assert with_bos[0] == BOS
    assert ids_of(llm, "Hello", add_special_tokens=True) == with_bos
    assert ids_of(llm, "Hello", add_special_tokens=False) == with_bos[1:]
    assert ids_of(llm, [1, 2], add_special_tokens=True) == [1, 2]
    chat = llm.chat(MESSAGES, GREEDY)[0].prompt_token_ids
    again = llm.chat(MESSAGES, GREEDY, tokenization_kwargs={"add_special_tokens": True})
    assert again[0].prompt_token_ids == [BOS, *chat]


def test_a_prompt_may_be_cut_to_its_last_tokens(llm: LLM) -> None:
    whole = ids_of(llm, "Hello")
    assert ids_of(llm, "Hello", truncate_prompt_tokens=3) == whole[-3:]
    assert ids_of(llm, "Hello", truncate_prompt_tokens=300) == whole
    assert ids_of(llm, [5] * 700, truncate_prompt_tokens=4) == [5] * 4
    assert len(ids_of(llm, [5] * 700, truncate_prompt_tokens=-1)) == 600 - 8
    (output,) = llm.chat(MESSAGES, GREEDY, tokenization_kwargs={"truncate_prompt_tokens": 2})
    assert len(output.prompt_token_ids) == 2
    with pytest.raises(ContextLengthError):
        ids_of(llm, [5] * 700, truncate_prompt_tokens=650)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1], r"tokenization_kwargs=\[1\] is not legal: it must be a dict"),
        ({"padding": True}, "tokenization_kwargs holds 'padding', which is not supported"),
        ({"add_special_tokens": 1}, "add_special_tokens=1 is not legal"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens=0 is not legal"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens=-2 is not legal"),
        ({"truncate_prompt_tokens": 1.5}, "truncate_prompt_tokens=1.5 is not legal"),
        ({"truncate_prompt_tokens": np.array([0, 1])}, "truncate_prompt_tokens=array"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens=True is not legal"),
    ],
)
def test_a_wrong_tokenization_is_named(llm: LLM, given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        llm.generate("a", GREEDY, tokenization_kwargs=given)
    with pytest.raises(RequestError, match=said):
        llm.chat(MESSAGES, GREEDY, tokenization_kwargs=given)
    with pytest.raises(RequestError, match=said):
        llm.enqueue("a", GREEDY, tokenization_kwargs=given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_request": object()}, "lora_request=.* a built engine has no adapters"),
        ({"priority": [1]}, r"priority=\[1\] is unsupported: requests run in the order"),
        ({"priority": np.array([0, 0])}, r"priority=array\(\[0, 0\]\) is unsupported"),
        ({"mm_processor_kwargs": {"size": 3}}, "engines take text only"),
        ({"mm_processor_kwargs": np.array([1, 2])}, "mm_processor_kwargs=array.* is unsupported"),
    ],
)
def test_what_an_engine_cannot_do_is_named(llm: LLM, given: Any, said: str) -> None:
    for call in (llm.generate, llm.enqueue):
        with pytest.raises(RequestError, match=said):
            call("a", GREEDY, **given)
    with pytest.raises(RequestError, match=said):
        llm.chat(MESSAGES, GREEDY, **given)


def test_what_asks_for_nothing_is_accepted(llm: LLM) -> None:
    neutral: dict[str, Any] = {
        "use_tqdm": True,
        "lora_request": None,
        "priority": [0],
        "tokenization_kwargs": {},
        "mm_processor_kwargs": {},
    }
    (expected,) = llm.generate("a", GREEDY)
    prompt: Any = {"prompt": "a", "multi_modal_data": None, "cache_salt": ""}
    assert llm.generate(prompt, GREEDY, **neutral)[0].outputs == expected.outputs
    assert llm.chat(MESSAGES, GREEDY, **neutral)[0].finished


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "'multi_modal_data' is unsupported"),
        ({"prompt_embeds": [[0.5]]}, "'prompt_embeds' is unsupported: prompts are text"),
        ({"prompt": "a", "multi_modal_data": np.array([1, 2])}, "'multi_modal_data' is unsupp"),
        ({"prompt": "a", "cache_salt": "x"}, "'cache_salt' is unsupported"),
        (np.array(3), "prompts of type ndarray: legal is a string, a list of token ids"),
        ([np.array(3)], "a prompt of type ndarray: legal is"),
        ({"prompt_token_ids": np.array(3)}, "token ids of type ndarray: a list of int"),
    ],
)
def test_prompts_that_are_no_text_are_named(llm: LLM, prompt: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        llm.generate(prompt, GREEDY)


def test_a_prompt_of_only_special_tokens_runs(llm: LLM, tiny_model: Any) -> None:
    for prompt in ([BOS], [BOS, EOS], "</s>"):
        (output,) = llm.generate(prompt, GREEDY)
        expected = tiny_model.continue_greedily(output.prompt_token_ids, 8)
        assert output.outputs[0].token_ids == expected


def test_a_chat_is_either_begun_or_continued(llm: LLM) -> None:
    conversation = [*MESSAGES, {"role": "assistant", "content": "I think"}]
    options: Any = {"add_generation_prompt": True, "continue_final_message": True}
    for call in (llm.chat, llm.enqueue_chat, llm.stream_chat):
        with pytest.raises(RequestError, match="add_generation_prompt"):
            call(conversation, GREEDY, **options)
    options["add_generation_prompt"] = False
    (output,) = llm.chat(conversation, GREEDY, **options)
    assert output.prompt == "<s>u:hi\na:I think"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"add_generation_promt": True}, "did you mean add_generation_prompt"),
        ({"enable_thinking": True}, "chat_template_kwargs= reach the template"),
    ],
)
def test_a_misspelt_option_of_a_chat_is_named(llm: LLM, given: Any, said: str) -> None:
    for call in (llm.enqueue_chat, llm.stream_chat):
        with pytest.raises(ArgumentError, match=said):
            call(MESSAGES, GREEDY, **given)


def test_an_unknown_argument_of_enqueue_is_named(llm: LLM) -> None:
    with pytest.raises(ArgumentError, match=r"^enqueue has no argument 'foo'; legal are lora_req"):
        llm.enqueue("a", GREEDY, foo=1)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="did you mean priority"):
        llm.enqueue("a", GREEDY, priorty=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["add_generation_prompt", "continue_final_message"])
@pytest.mark.parametrize("value", ["x", 1, None])
def test_a_switch_of_a_chat_is_true_or_false(llm: LLM, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name}={value!r} is not legal: .* True or False"):
        llm.chat(MESSAGES, GREEDY, **{name: value})


@pytest.mark.parametrize("sequences", [5, None, ([1] for _ in "ab"), "ab", np.array(3)])
def test_sequences_that_are_no_list_are_named(llm: LLM, sequences: Any) -> None:
    with pytest.raises(PromptError, match=r"^sequences of type .*: a list of lists of token ids"):
        llm.batch_logits(sequences)


def test_lists_must_match(llm: LLM) -> None:
    for count in (0, 1, 3):
        with pytest.raises(SamplingParamsError, match=f"{count} sampling_params for 2 prompts"):
            llm.generate(["a", "b"], [GREEDY] * count)
        with pytest.raises(SamplingParamsError, match=f"{count} sampling_params for 2 prompts"):
            llm.chat([MESSAGES, MESSAGES], [GREEDY] * count)
        with pytest.raises(SamplingParamsError, match=f"{count} sampling_params for 2 prompts"):
            llm.enqueue(["a", "b"], [GREEDY] * count)


def test_what_is_enqueued_runs_in_its_order(llm: LLM) -> None:
    expected = llm.generate(["one", "two", "three"], GREEDY)
    (answered,) = llm.chat(MESSAGES, GREEDY)
    first = llm.enqueue(["one", "two"], [GREEDY, GREEDY])
    between = llm.generate("three", GREEDY)
    assert between[0].outputs == expected[2].outputs
    later = llm.enqueue({"prompt": "three"}, GREEDY)
    chat = llm.enqueue_chat(MESSAGES, GREEDY, chat_template_kwargs={"tail": "!"})
    outputs = llm.wait_for_completion()
    assert [output.request_id for output in outputs] == first + later + chat
    assert [o.outputs for o in outputs] == [o.outputs for o in [*expected, answered]]
    assert llm.wait_for_completion() == []


def test_a_wrong_prompt_enqueues_nothing(llm: LLM) -> None:
    with pytest.raises(PromptError, match="prompt 1: the prompt is empty"):
        llm.enqueue(["a", ""], GREEDY)
    assert llm.wait_for_completion() == []
    assert llm.logits([1, 2]).shape == (2, 258)


def test_what_is_enqueued_keeps_the_engine(llm: LLM) -> None:
    llm.enqueue("a", GREEDY)
    with pytest.raises(RequestError, match="a request is enqueued: finish it first"):
        llm.logits([1, 2])
    llm.wait_for_completion()


def test_an_interrupt_leaves_nothing_behind(llm: LLM) -> None:
    def interrupts(ids: list[int], row: Any) -> Any:
        raise KeyboardInterrupt

    params = SamplingParams(logits_processors=[interrupts])
    llm.enqueue(["a", "b"], [GREEDY, params])
    with pytest.raises(KeyboardInterrupt):
        llm.wait_for_completion()
    assert llm.wait_for_completion() == []
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], [GREEDY, params])
    assert llm.logits([1, 2]).shape == (2, 258)


def test_a_prefix_is_computed_once_until_the_cache_is_reset(llm: LLM) -> None:
    prompt, params = [number % 250 for number in range(300)], SamplingParams(max_tokens=2)
    llm.reset_prefix_cache()
    cached = [llm.generate(prompt, params)[0].num_cached_tokens for _ in range(2)]
    assert cached[0] == 0
    assert cached[1] is not None
    assert cached[1] > 0
    assert llm.reset_prefix_cache() is True
    assert llm.generate(prompt, params)[0].num_cached_tokens == 0


def test_generate_runs_a_beam_search_and_names_the_call(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched = llm.beam_search([{"prompt": "Hello"}, {"prompt": "Hi"}], params)
    with pytest.warns(DeprecationWarning, match=r"call LLM\.beam_search") as caught:
        outputs = llm.generate(["Hello", "Hi"], params)
    assert caught[0].filename == __file__
    for output, found in zip(outputs, searched, strict=True):
        texts = [sequence.generated_text for sequence in found.sequences]
        assert [completion.text for completion in output.outputs] == texts
        assert output.outputs[0].token_ids == found.sequences[0].generated_token_ids
    short = {"truncate_prompt_tokens": 2}
    with pytest.warns(DeprecationWarning, match="beam_search"):
        (cut,) = llm.generate("Hello", params, tokenization_kwargs=short)
    assert len(cut.prompt_token_ids) == 2


def test_a_wrong_beam_of_many_is_named(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=5)
    with pytest.raises(PromptError, match="prompt 1: the prompt is empty"):
        llm.beam_search(["a", ""], params)
    with pytest.raises(SamplingParamsError, match="give a BeamSearchParams"):
        llm.beam_search("a", GREEDY)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="lora_request"):
        llm.beam_search("a", params, lora_request="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [None, 1])
def test_beams_without_room_are_named_before_any_prompt_runs(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5)
    with LLM(tiny_artifact, threads=1, kv_cache_memory_bytes=60 * 512) as small:
        small.beam_search(["Hi"], params)
        monkeypatch.setattr(small._core, "step", pytest.fail)
        with pytest.raises(RequestError, match=r"^prompt 1: 3 beams of 46 tokens do not fit"):
            small.beam_search(["Hi", "x" * 40], params, concurrency_limit=limit)


def test_nothing_of_a_closed_llm_runs(tiny_artifact: Path) -> None:
    llm = LLM(tiny_artifact, threads=1)
    llm.enqueue("a", GREEDY)
    llm.close()
    calls: list[Callable[[], object]] = [
        lambda: llm.chat(MESSAGES),
        lambda: llm.enqueue("a"),
        lambda: llm.enqueue_chat(MESSAGES),
        llm.wait_for_completion,
        lambda: llm.beam_search("a", BeamSearchParams(beam_width=1, max_tokens=1)),
        lambda: llm.stream("a"),
        lambda: llm.stream_chat(MESSAGES),
        llm.reset_prefix_cache,
    ]
    for call in calls:
        with pytest.raises(EnginewrightError, match="was closed"):
            call()


def test_outputs_read_as_vllms(llm: LLM) -> None:
    (output,) = llm.generate("Hello", GREEDY)
    for name in ("lora_request", "encoder_prompt", "encoder_prompt_token_ids"):
        assert getattr(output, name) is None
    assert output.kv_transfer_params is None
    assert output.outputs[0].lora_request is None
    assert output.outputs[0].routed_experts is None
    assert output.outputs[0].finished()


@pytest.mark.parametrize("flat", [False, True])
def test_deltas_add_up_to_the_whole(llm: LLM, flat: bool) -> None:
    params = SamplingParams(
        n=3,
        seed=4,
        max_tokens=9,
        logprobs=1,
        prompt_logprobs=1,
        flat_logprobs=flat,
        output_kind=RequestOutputKind.DELTA,
    )
    (whole,) = llm.generate("Hello", params)
    joined, *rest = llm.stream("Hello", params)
    for delta in rest:
        joined.add(delta, aggregate=True)
    joined.outputs.sort(key=lambda completion: completion.index)
    assert joined.outputs == whole.outputs
    assert joined.finished
    assert joined.prompt_logprobs == whole.prompt_logprobs


def test_a_later_output_takes_the_place_of_an_earlier(llm: LLM) -> None:
    (early,) = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=2))
    (late,) = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=6, n=1))
    early.add(late, aggregate=False)
    assert early.outputs == late.outputs
