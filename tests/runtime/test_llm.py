"""LLM end to end on a tiny artifact: real tokenizer, template, ONNX Runtime and sampler."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import (
    LLM,
    ArtifactError,
    ChatTemplateError,
    ContextLengthError,
    EnginewrightError,
    MissingDependencyError,
    PromptError,
    RequestError,
    SamplingParams,
    SamplingParamsError,
    TargetError,
)
from enginewright.runtime.backends import load_backend
from enginewright.runtime.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
BOS = 256


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def encode(text: str) -> list[int]:
    """What the tiny artifact's tokenizer gives, without BOS."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [alphabet.index(character) for word, _ in shown for character in word]


def test_greedy_equals_numpy_for_every_form_of_prompt(llm: LLM, tiny_model: Any) -> None:
    ids = [BOS, *encode("Hello")]
    expected = tiny_model.continue_greedily(ids, 8)
    forms: list[Any] = [
        "Hello",
        ids,
        tuple(ids),
        np.array(ids),
        {"prompt": "Hello"},
        {"prompt_token_ids": ids},
        {"prompt_token_ids": ids, "prompt": "Hello"},
    ]
    for form in forms:
        (output,) = llm.generate(form, GREEDY)
        assert output.prompt_token_ids == ids
        assert output.outputs[0].token_ids == expected
        assert output.prompt in ("Hello", None)
    together = llm.generate(forms, GREEDY)
    assert [output.outputs[0].token_ids for output in together] == [expected] * len(forms)


def test_many_ragged_prompts_keep_their_order(llm: LLM, tiny_model: Any) -> None:
    prompts = [[BOS, *range(start, start + 3 * start + 1)] for start in (9, 1, 30, 4, 17, 2)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in range(3, 9)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt_token_ids for output in outputs] == prompts
    for output, prompt, each in zip(outputs, prompts, params, strict=True):
        assert each.max_tokens is not None
        expected = tiny_model.continue_greedily(prompt, each.max_tokens)
        assert output.outputs[0].token_ids == expected
        assert output.finished
        assert output.outputs[0].finish_reason == "length"


def test_a_prompt_longer_than_a_step_equals_numpy(llm: LLM, tiny_model: Any) -> None:
    prompt = [number % 250 for number in range(550)]
    (output,) = llm.generate(prompt, GREEDY)
    assert output.outputs[0].token_ids == tiny_model.continue_greedily(prompt, 8)


def test_text_is_the_decoding_without_the_prompt(llm: LLM) -> None:
    (output,) = llm.generate("Hello", GREEDY)
    completion = output.outputs[0]
    decoded = llm.get_tokenizer().decode(completion.token_ids)
    assert completion.text == decoded
    (silent,) = llm.generate("Hello", SamplingParams(temperature=0, detokenize=False))
    assert silent.outputs[0].text == ""
    assert silent.outputs[0].token_ids[:8] == completion.token_ids


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_a_seed_repeats_whatever_runs_beside_it(llm: LLM) -> None:
    seeded = SamplingParams(temperature=1.0, seed=11, max_tokens=12)
    (alone,) = llm.generate("Once", seeded)
    beside = llm.generate(["a", "Once", "longer than the others"], seeded)
    assert beside[1].outputs[0].token_ids == alone.outputs[0].token_ids
    (other,) = llm.generate("Once", SamplingParams(temperature=1.0, seed=12, max_tokens=12))
    assert other.outputs[0].token_ids != alone.outputs[0].token_ids


def test_the_llms_seed_repeats_and_still_tells_requests_apart(tiny_artifact: Path) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12)
    runs = []
    for _ in range(2):
        with LLM(tiny_artifact, threads=1, seed=5) as llm:
            runs.append([o.outputs[0].token_ids for o in llm.generate(["Hi", "Hi"], params)])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_a_stop_string_ends_the_text(llm: LLM) -> None:
    (whole,) = llm.generate("stop", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    text = whole.outputs[0].text
    stop = next(character for character in text[2:] if character.isascii())
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=stop)
    (cut,) = llm.generate("stop", params)
    assert cut.outputs[0].text == text[: text.index(stop)]
    assert cut.outputs[0].finish_reason == "stop"
    assert cut.outputs[0].stop_reason == stop


def test_the_context_limit_ends_a_generation(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact, threads=1, max_context=20) as llm:
        for max_tokens in (None, 1000):
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            (output,) = llm.generate([1] * 15, params)
            assert len(output.outputs[0].token_ids) == 5
            assert output.outputs[0].finish_reason == "length"


def test_a_prompt_beyond_the_limit_says_limit_got_and_what_to_do(llm: LLM) -> None:
    llm.generate([1] * 599, SamplingParams(temperature=0, max_tokens=1))
    with pytest.raises(ContextLengthError, match=r"600 tokens.*limit is 600.*limits\.max_context"):
        llm.generate([1] * 600)


def test_a_text_that_no_tokens_can_hold_is_refused_by_its_length(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting megabytes into tokens takes seconds."""
    text = "a" * (600 * llm.get_tokenizer().longest_token + 1)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("it was cut"))
    for ask in (llm.generate, lambda prompt: llm.chat([{"role": "user", "content": prompt}])):
        with pytest.raises(ContextLengthError, match=r"characters.*600 tokens can hold"):
            ask(text)


def test_a_long_text_is_cut_as_a_short_one(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    text = "The mill, 1804. " * 1000
    assert tokenizer.encode(text) == list(tokenizer.backend.encode(text).ids)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([[]], "the prompt is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt_token_ids": []}, "the prompt is empty"),
        ([1, 258], "token id 258 at position 1 is outside the vocabulary: legal are 0 to 257"),
        ([1, -1], "token id -1 at position 1"),
        ([1, 2.5], "token id 2.5 at position 1: an int is needed"),
        ([1, True], "token id True at position 1"),
        ({"promt": "x"}, "the key 'promt'"),
        ({"prompt": 3}, "type int: legal is a string"),
        ({"prompt_token_ids": "abc"}, "token ids of type str"),
        (3, "prompts of type int: legal is a string"),
        (None, "prompts of type NoneType"),
        ([None], "a prompt of type NoneType"),
        (b"bytes", "prompts of type bytes"),
    ],
)
def test_a_wrong_prompt_is_refused(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        llm.generate(prompt, GREEDY)


def test_a_wrong_prompt_of_many_is_named_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(PromptError, match="prompt 2: the prompt is empty"):
        llm.generate(["a", "b", ""], GREEDY)
    with pytest.raises(ContextLengthError, match="prompt 1: the prompt has"):
        llm.generate(["a", [1] * 700], GREEDY)


def test_params_must_match_the_prompts(llm: LLM) -> None:
    with pytest.raises(SamplingParamsError, match="1 sampling_params for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(SamplingParamsError, match="give a SamplingParams"):
        llm.generate(["a"], [{"temperature": 0}])  # type: ignore[list-item]
    with pytest.raises(SamplingParamsError, match="give a SamplingParams"):
        llm.generate(["a"], 0.5)  # type: ignore[arg-type]


def test_defaults_come_from_the_model_unless_switched_off(tiny_artifact: Path, llm: LLM) -> None:
    assert llm.get_default_sampling_params().temperature == 0.7
    with LLM(tiny_artifact, threads=1, generation_config="vllm") as neutral:
        assert neutral.get_default_sampling_params() == SamplingParams()
        assert len(neutral.generate("a")[0].outputs[0].token_ids) <= 16
    with pytest.raises(EnginewrightError, match="generation_config='hf': legal are"):
        LLM(tiny_artifact, generation_config="hf")  # type: ignore[arg-type]


def test_chat_renders_the_template_with_one_bos(llm: LLM, tiny_model: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(messages, GREEDY)
    assert output.prompt == "<s>u:hi\na:"
    assert output.prompt_token_ids == [BOS, *encode("u:hi\na:")]
    expected = tiny_model.continue_greedily(output.prompt_token_ids, 8)
    assert output.outputs[0].token_ids == expected
    (bare,) = llm.chat(messages, GREEDY, add_generation_prompt=False)
    assert bare.prompt == "<s>u:hi\n"


def test_chat_takes_many_conversations(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("one", "two")]
    prompts = [output.prompt for output in llm.chat(conversations, GREEDY)]
    assert prompts == ["<s>u:one\na:", "<s>u:two\na:"]


def test_chat_templates_may_be_given(tiny_artifact: Path, llm: LLM, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    literal = "{{ messages[0].content }}{{ tail }}"
    kwargs = {"tail": "!"}
    (output,) = llm.chat(messages, GREEDY, chat_template=literal, chat_template_kwargs=kwargs)
    assert output.prompt == "hi!"
    path = tmp_path / "own.jinja"
    path.write_text("own {{ messages[0].content }}", "utf-8")
    with LLM(tiny_artifact, threads=1, chat_template=path) as own:
        assert own.chat(messages, GREEDY)[0].prompt == "own hi"
    with pytest.raises(ChatTemplateError, match=r"'missing\.jinja' looks like a file path"):
        llm.chat(messages, GREEDY, chat_template="missing.jinja")


def test_chat_without_a_template_says_so(make_tiny: Callable[..., Path]) -> None:
    with (
        LLM(make_tiny(template=None), threads=1) as llm,
        pytest.raises(ChatTemplateError, match=r"no chat template.*use generate\(\)"),
    ):
        llm.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("messages", [[], "hi", {"role": "user", "content": "hi"}, [[]], [3]])
def test_wrong_messages_are_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(PromptError):
        llm.chat(messages, GREEDY)


def test_a_template_that_fails_names_the_conversation(llm: LLM) -> None:
    template = "{% if messages[0].content == 'b' %}{{ raise_exception('no b') }}{% endif %}x"
    conversations = [[{"role": "user", "content": text}] for text in "ab"]
    with pytest.raises(ChatTemplateError, match=r"prompt 1: .*no b"):
        llm.chat(conversations, GREEDY, chat_template=template)


def test_a_stream_gives_the_same_text_in_pieces(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=30, logprobs=1)
    (whole,) = llm.generate("Hello", params)
    parts = [output.outputs[0] for output in llm.stream("Hello", params)]
    assert "".join(part.text for part in parts) == whole.outputs[0].text
    assert [token for part in parts for token in part.token_ids] == whole.outputs[0].token_ids
    assert all(len(part.token_ids) == len(part.logprobs or ()) == 1 for part in parts)
    assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].finish_reason == whole.outputs[0].finish_reason


def test_streams_run_beside_each_other_and_beside_generate(llm: LLM) -> None:
    (first,) = llm.generate("first", GREEDY)
    (second,) = llm.generate("second", GREEDY)
    streams = llm.stream("first", GREEDY), llm.stream("second", GREEDY)
    texts = ["", ""]
    for number in (0, 1, 0, 0, 1):
        texts[number] += next(streams[number]).outputs[0].text
    assert llm.generate("first", GREEDY)[0].outputs == first.outputs
    for number, stream in enumerate(streams):
        texts[number] += "".join(output.outputs[0].text for output in stream)
    assert texts == [first.outputs[0].text, second.outputs[0].text]


def test_leaving_a_stream_early_frees_it(llm: LLM) -> None:
    stream = llm.stream("Hello", GREEDY)
    next(stream)
    with pytest.raises(RequestError, match="while a stream is running"):
        llm.logits([1, 2])
    stream.close()
    assert llm.logits([1, 2]).shape == (2, 258)


def test_a_stream_is_checked_before_it_is_iterated(llm: LLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.stream("")


def test_chat_streams_too(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (whole,) = llm.chat(messages, GREEDY)
    text = "".join(output.outputs[0].text for output in llm.stream_chat(messages, GREEDY))
    assert text == whole.outputs[0].text


def test_logits_of_every_position_equal_numpy(llm: LLM, tiny_model: Any) -> None:
    ids = [number * 7 % 250 for number in range(40)]
    expected = tiny_model.logits(ids)
    for chunk in (None, 1, 16, 39):
        np.testing.assert_allclose(llm.logits(ids, chunk=chunk), expected, rtol=1e-4, atol=1e-4)


def test_a_ragged_batch_is_bitwise_each_sequence_alone(llm: LLM) -> None:
    sequences = [[5, 6, 7, 8], [9], list(range(30))]
    together = llm.batch_logits(sequences)
    for ids, logits in zip(sequences, together, strict=True):
        assert np.array_equal(logits, llm.logits(ids))


def test_scoring_refuses_what_does_not_fit(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="601 tokens, this engine's limit is 600"):
        llm.logits([1] * 601)
    with pytest.raises(PromptError, match="5 sequences: a batch may hold 1 to 4"):
        llm.batch_logits([[1]] * 5)
    with pytest.raises(PromptError, match="prompt 1: the prompt is empty"):
        llm.batch_logits([[1], []])
    with pytest.raises(RequestError, match="chunk=0"):
        llm.logits([1], chunk=0)


def test_limits_may_only_be_lowered(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact, threads=1, max_batch=2, max_context=100) as llm:
        assert (llm.max_batch, llm.max_context) == (2, 100)
        assert len(llm.generate(["a", "b", "c"], GREEDY)) == 3
    said = r"max_context=601 .* from 2 to 600, .*limits\.max_context"
    with pytest.raises(EnginewrightError, match=said):
        LLM(tiny_artifact, max_context=601)
    with pytest.raises(EnginewrightError, match=r"max_batch=0 .* from 1 to 4"):
        LLM(tiny_artifact, max_batch=0)


def test_a_closed_llm_says_so(tiny_artifact: Path) -> None:
    llm = LLM(tiny_artifact, threads=1)
    stream = llm.stream("Hello", GREEDY)
    next(stream)
    llm.close()
    llm.close()
    (last,) = stream
    assert last.outputs[0].finish_reason == "abort"
    assert last.outputs[0].text == ""
    for call in (lambda: llm.generate("a"), lambda: llm.logits([1])):
        with pytest.raises(EnginewrightError, match="was closed"):
            call()


def test_a_wrong_target_lists_what_there_is(
    tiny_artifact: Path, make_tiny: Callable[..., Path]
) -> None:
    with pytest.raises(TargetError, match=r"no engine for target 'tensorrt'.*holds: cpu"):
        LLM(tiny_artifact, target="tensorrt")
    with pytest.raises(TargetError, match=r"'abacus': this runtime has no backend.*it runs: cpu"):
        load_backend("abacus")


def test_a_missing_extra_is_named_with_the_command(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_onnxruntime(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real_import(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("enginewright.runtime.backends.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_onnxruntime)
    expected = r"needs onnxruntime: pip install 'enginewright\[cpu\]'"
    with pytest.raises(MissingDependencyError, match=expected):
        LLM(tiny_artifact)


def test_a_missing_tokenizer_is_refused(
    make_tiny: Callable[..., Path], manifest_writer: Callable[..., Any]
) -> None:
    folder = make_tiny()
    entry = manifest_writer(folder, _entry(folder)).engines[0]
    (folder / "tokenizer.json").unlink()
    manifest_writer(folder, entry)
    with pytest.raises(ArtifactError, match=r"'tokenizer\.json', which is needed"):
        LLM(folder)


def _entry(folder: Path) -> Any:
    from enginewright.runtime.artifact.artifact import Artifact

    return Artifact.open(folder).engine()


def test_a_request_that_fails_while_it_runs_harms_no_other(
    make_tiny: Callable[..., Path], tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A token whose embedding overflowed makes its own row's logits useless, no other's."""
    model = type(tiny_model)()
    model.weights["embedding"][7] = np.nan
    with LLM(make_tiny(model=model), threads=1) as llm:
        bad, good = llm.generate([[7, 1], [1, 3]], GREEDY)  # [1, 3] never leads to 7
        assert good.outputs[0].token_ids == tiny_model.continue_greedily([1, 3], 8)
        assert bad.outputs[0].finish_reason == "error"
        assert "no usable logits" in str(bad.error)
        assert "a request failed: the engine gave no usable logits" in caplog.text
        with pytest.raises(EnginewrightError, match="no usable logits"):
            llm.generate([7, 1], GREEDY)
        with pytest.raises(EnginewrightError, match="no usable logits"):
            list(llm.stream([7, 1], GREEDY))


def test_times_and_ids_come_with_the_output(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], GREEDY)
    assert outputs[0].request_id != outputs[1].request_id
    for output in outputs:
        assert output.metrics is not None
        assert output.metrics.finished_time is not None


def test_nothing_is_printed(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate("a", GREEDY)
    assert capfd.readouterr() == ("", "")
