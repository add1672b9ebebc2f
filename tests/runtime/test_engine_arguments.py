"""Arguments of LLM that others know: heeded, or accepted where they ask for nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM, ArgumentError, EnginewrightError, SamplingParams
from enginewright.runtime.engine_arguments import NEUTRAL

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
USUAL: dict[str, Any] = {
    "runner": "generate",
    "dtype": "auto",
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.9,
    "enforce_eager": True,
    "trust_remote_code": True,
    "swap_space": 4,
    "max_model_len": 100,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 64,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": True,
    "seed": 0,
    "hf_token": "secret",
    "served_model_name": ["mine"],
    "disable_log_stats": True,
    "load_in_4bit": False,
}


def test_what_vllms_users_usually_give_is_accepted(tiny_artifact: Path, tiny_model: Any) -> None:
    with LLM(tiny_artifact, tokenizer=str(tiny_artifact), **USUAL) as llm:
        assert (llm.max_batch, llm.max_context) == (2, 100)
        (output,) = llm.generate([1, 2, 3], GREEDY)
    assert output.outputs[0].token_ids == tiny_model.continue_greedily([1, 2, 3], 6)


@pytest.mark.parametrize("name", NEUTRAL)
def test_every_argument_has_a_value_that_asks_for_nothing(tiny_artifact: Path, name: str) -> None:
    neutral, reason = NEUTRAL[name]
    for value in ("anything",) if neutral is None else neutral:
        LLM(tiny_artifact, threads=1, **{name: value}).close()
    if neutral is not None:
        with pytest.raises(EnginewrightError) as caught:
            LLM(tiny_artifact, **{name: "surprise"})
        assert f"{name}='surprise' is unsupported: {reason}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("runner", "pooling", "runner='pooling' is unsupported: engines generate text"),
        ("task", "embed", "task='embed' is unsupported"),
        ("tokenizer", "other/model", "the artifact holds the tokenizer"),
        ("dtype", "bfloat16", "dtype=bfloat16: this engine computes in float32"),
        ("dtype", "int4", r"the recipe's precision \(fp32\)"),
        ("quantization", "awq", "quantization='awq': this artifact's precision is fp32"),
        ("quantization", 4, "quantization=4 is not legal: it must be text"),
        ("revision", "main", "revision='main': this artifact was built from a source without one"),
        ("target", 3, "target=3 is not legal: it must be text"),
        ("plan", "abacus", "no plan 'abacus'"),
        ("allow_native_code", "yes", "allow_native_code='yes' is not legal"),
        ("verify", "sometimes", "verify='sometimes': legal values are"),
        ("enable_prefix_caching", 1, "enable_prefix_caching=1 is not legal"),
        ("max_num_batched_tokens", 3, "an integer of at least 4, or None for 512"),
        ("max_num_seqs", 5, "max_batch=5 is not legal: it must be an integer from 1 to 4"),
        ("max_model_len", 601, "max_context=601 is not legal"),
        ("kv_cache_memory_bytes", 0, "kv_cache_memory_bytes=0 is not legal"),
        ("kv_cache_memory_bytes", 1.5, "kv_cache_memory_bytes=1.5 is not legal"),
        ("kv_cache_memory_bytes", 1, "kv_cache_memory_bytes=1 holds 0 tokens"),
        ("max_logprobs", -2, "max_logprobs=-2 is not legal"),
        ("max_logprobs", "5", "max_logprobs='5' is not legal"),
        ("logits_processors", "name", "logits_processors='name' is not legal"),
        ("logits_processors", [3], "logits_processors=3 is not legal"),
        ("logits_processors", ["no.such.module:f"], "cannot be imported"),
        ("override_generation_config", [1], r"override_generation_config=\[1\] is not legal"),
        ("override_generation_config", {"do_sample": True}, "has the key 'do_sample'"),
        ("override_generation_config", {"top_p": 7}, r"override_generation_config=.*top_p=7"),
        ("generation_config", 3, "generation_config=3: legal are 'auto'"),
        ("generation_config", "", "generation_config='': legal are 'auto'"),
        ("load_in_4bit", True, "the precision is the recipe's: enginewright build"),
        ("tensor_parallel_size", 2, "an engine runs on one device; legal is 1"),
        ("hf_overrides", np.array([1, 2]), r"hf_overrides=array\(\[1, 2\]\) is unsupported"),
        ("runner", np.array([1, 2]), "runner=array"),
        ("tokenizer", np.array([1, 2]), "tokenizer=array"),
        ("chat_template", "{{", "chat template"),
        ("kv_cache_dtype", "fp8", "the layout of the cache is fixed"),
        ("enable_lora", True, "merge them into the checkpoint"),
        ("speculative_config", {"model": "x"}, "has no num_speculative_tokens"),
        ("speculative_config", "ngram", "speculative_config='ngram' is not legal"),
        ("spec_method", "ngram", "speculative_config= says how tokens are drafted"),
    ],
)
def test_what_asks_for_something_else_is_named(
    tiny_artifact: Path, name: str, value: Any, said: str
) -> None:
    with pytest.raises(EnginewrightError, match=said):
        LLM(tiny_artifact, **{name: value})


@pytest.mark.parametrize("dtype", ["auto", "float32", "float", "torch.float32"])
def test_the_engines_own_dtype_may_be_named(tiny_artifact: Path, dtype: str) -> None:
    LLM(tiny_artifact, threads=1, dtype=dtype, quantization="fp32").close()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_seq_len", "max_model_len"),
        ("gpu_memory", "gpu_memory_utilization"),
        ("temprature", r"SamplingParams\(temperature="),
        ("xyzzy", "docs/offline-inference.md"),
    ],
)
def test_an_unknown_argument_is_named_with_the_nearest(
    tiny_artifact: Path, name: str, near: str
) -> None:
    with pytest.raises(ArgumentError, match=f"LLM has no argument '{name}'.*{near}") as caught:
        LLM(tiny_artifact, **{name: "secret"})
    assert isinstance(caught.value, TypeError)
    assert "secret" not in str(caught.value)


def test_everything_after_the_model_is_named(tiny_artifact: Path) -> None:
    with pytest.raises(TypeError, match="positional"):
        LLM(tiny_artifact, "cpu")  # type: ignore[misc]


def test_task_is_the_old_spelling_of_runner(tiny_artifact: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"spelt runner='generate'") as caught:
        LLM(tiny_artifact, threads=1, task="generate").close()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LLM(tiny_artifact, threads=1, runner="generate").close()


def test_two_names_for_one_limit_must_agree(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact, threads=1, max_batch=2, max_num_seqs=2) as llm:
        assert llm.max_batch == 2
    with pytest.raises(EnginewrightError, match="max_context=50 and max_model_len=60 are two"):
        LLM(tiny_artifact, max_context=50, max_model_len=60)
    with pytest.raises(EnginewrightError, match=r"max_batch=array.* and max_num_seqs=2 are two"):
        LLM(tiny_artifact, max_batch=np.array([2, 2]), max_num_seqs=2)  # type: ignore[arg-type]


def test_steps_take_no_more_tokens_than_asked(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    with LLM(tiny_artifact, threads=1, max_num_batched_tokens=16) as llm:
        engine = llm._open_core()._engine
        step = engine.step
        monkeypatch.setattr(
            engine, "step", lambda batch: sizes.append(batch.input_ids.size) or step(batch)
        )
        llm.generate([list(range(100)), [1, 2]], GREEDY)
    assert max(sizes) == 16


def test_the_cache_stays_within_its_bytes(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact, threads=1) as llm:
        per_token = llm.engine_info.kv_bytes_per_token
    with LLM(tiny_artifact, threads=1, kv_cache_memory_bytes=per_token * 90) as llm:
        assert llm.max_context <= 90
        assert len(llm.generate([[1, 2]] * 9, GREEDY)) == 9


def test_processors_of_the_llm_see_every_request(tiny_artifact: Path) -> None:
    def only_a(ids: list[int], row: Any) -> Any:
        row[:] = -1.0
        row[65] = 1.0
        return row

    with LLM(tiny_artifact, threads=1, logits_processors=[only_a]) as llm:
        outputs = llm.generate(["a", "b"], GREEDY)
        assert [output.outputs[0].token_ids for output in outputs] == [[65] * 6] * 2


def test_max_logprobs_bounds_requests(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact, threads=1, max_logprobs=2) as llm:
        llm.generate("a", SamplingParams(logprobs=2, prompt_logprobs=2, max_tokens=1))
        for params in (SamplingParams(logprobs=3), SamplingParams(prompt_logprobs=-1)):
            with pytest.raises(EnginewrightError, match=r"logprobs=.* at most 2 \(max_logprobs\)"):
                llm.generate("a", params)
    with LLM(tiny_artifact, threads=1, max_logprobs=-1) as llm:
        (output,) = llm.generate("a", SamplingParams(logprobs=-1, max_tokens=1))
        assert output.outputs[0].logprobs is not None
        assert len(output.outputs[0].logprobs[0]) == 258
