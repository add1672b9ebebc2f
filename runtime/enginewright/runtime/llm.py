"""LLM: an artifact, loaded. Text, token ids or messages in, RequestOutputs out."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from enginewright.runtime import scoring
from enginewright.runtime.artifact.artifact import Verify
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.beam_search import run as beams
from enginewright.runtime.beam_search.job import BeamJob
from enginewright.runtime.beam_search.outputs import BeamSearchOutput
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.results import beam_output, request_output
from enginewright.runtime.engine import Engine
from enginewright.runtime.engine_arguments import check_others, check_runner
from enginewright.runtime.errors import EnginewrightError, PromptError, RequestError
from enginewright.runtime.loading import Loaded, LoadedModel, load
from enginewright.runtime.options import EngineOptions, RequestOptions, check_chunk, one_of_two
from enginewright.runtime.progress import UseTqdm, check_progress
from enginewright.runtime.requests import running
from enginewright.runtime.requests.arguments import (
    CallOptions,
    ChatOptions,
    Tokenization,
    check_call_options,
    read_call,
)
from enginewright.runtime.requests.factory import for_each
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.requests.outputs import RequestOutput
from enginewright.runtime.requests.prompts import (
    Conversation,
    Prompt,
    Prompts,
    is_list,
    split_conversations,
    split_prompts,
)
from enginewright.runtime.sampling.custom import LogitsProcessor
from enginewright.runtime.sampling.defaults import GenerationConfig
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.speculation.config import read_config
from enginewright.runtime.text.chat import ContentFormat
from enginewright.runtime.text.templates import TemplateSource
from enginewright.runtime.trust.policy import Policy, read_policy

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM(LoadedModel):
    """A loaded artifact. One thread uses it at a time; ``close`` it, or use it in ``with``.

    ``model``: an artifact's folder; or what an artifact was built from on this machine (a
    checkpoint's folder, a GGUF file, a repository of the hub), the newest of them, in the
    precision ``quantization`` and of the commit ``revision`` if these are given.

    What is allowed to run: ``target`` and ``plan`` choose among the artifact's engines, by default
    the first that runs here. ``allow_native_code``: True runs an artifact's own operators whoever
    compiled them, False never, None if this machine or the package did. ``policy``: which
    artifacts may be used at all, and whether their code may run (trust/policy.py has the fields);
    plain data or a Policy, and stricter than any other argument. ``verify``: see Artifact.open.
    ``threads``: 1 to 256, by default all cores that the process may use; more than these warn.

    How much: ``max_batch`` (or vLLM's ``max_num_seqs``) and ``max_context`` (``max_model_len``)
    lower the engine's limits. ``max_num_batched_tokens``: of prompts, in one step.
    ``kv_cache_memory_bytes`` bounds the cache, a draft's included; too few for a request of a
    ``max_context`` that is given are refused, else they lower it and warn.
    ``enable_prefix_caching``: what prompts have in common is computed once. ``speculative_config``:
    tokens are guessed, and several checked by one step; it changes how fast tokens come, never
    which (docs/speculation.md). ``max_logprobs``: the most that a request may ask for.

    What requests get: ``seed`` makes those without a seed of their own repeatable, in their order;
    by default they take fresh entropy. ``chat_template``: a path, a template or a built-in name, in
    place of the artifact's. ``generation_config``: where the sampling defaults of a call without
    ``sampling_params`` come from: "auto" the model, "vllm" none, or a folder's
    generation_config.json; ``override_generation_config`` goes over them. ``logits_processors``
    see every request's logits before its own: functions, installed names, "module:attribute".

    ``others`` are vLLM's arguments for which a built engine has no use. Each is accepted at the
    value that asks for nothing, see engine_arguments.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        runner: Literal["auto", "generate"] = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        target: str | None = None,
        plan: str | None = None,
        allow_native_code: bool | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
        verify: Verify = "cached",
        threads: int | None = None,
        max_batch: int | None = None,
        max_num_seqs: int | None = None,
        max_context: int | None = None,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        kv_cache_memory_bytes: int | None = None,
        enable_prefix_caching: bool | None = True,
        max_logprobs: int | None = None,
        seed: int | None = None,
        chat_template: TemplateSource | None = None,
        generation_config: GenerationConfig = "auto",
        override_generation_config: Mapping[str, Any] | None = None,
        logits_processors: Sequence[LogitsProcessor | str] | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        check_others(others, model=model, known=LLM.__init__.__kwdefaults__ or ())
        check_runner(runner)
        loaded = load(
            model,
            EngineOptions(
                dtype=dtype,
                quantization=quantization,
                revision=revision,
                target=target,
                plan=plan,
                allow_native_code=allow_native_code,
                policy=read_policy(policy),
                verify=verify,
                threads=threads,
                max_batch=one_of_two("max_batch", max_batch, "max_num_seqs", max_num_seqs),
                max_context=one_of_two("max_context", max_context, "max_model_len", max_model_len),
                max_num_batched_tokens=max_num_batched_tokens,
                kv_cache_memory_bytes=kv_cache_memory_bytes,
                enable_prefix_caching=enable_prefix_caching,
                speculation=read_config(speculative_config),
            ),
            RequestOptions(
                seed=seed,
                max_logprobs=max_logprobs,
                chat_template=chat_template,
                generation_config=generation_config,
                override_generation_config=override_generation_config,
                logits_processors=logits_processors,
            ),
        )
        self._run(loaded)

    @classmethod
    def over(cls, model: str | os.PathLike[str], engine: Engine | EngineEntry) -> Self:
        """An LLM that runs this engine in place of the artifact's own, and closes it.

        For engines that no backend opens, such as one that interprets a graph, and for entries
        that the manifest of the artifact in folder ``model`` does not have, or not yet. Tokenizer,
        templates and defaults are the artifact's; hashes are not checked, and the native code of an
        entry runs if this machine may run it.
        """
        llm = cls.__new__(cls)
        llm._run(load(model, EngineOptions(verify="never"), RequestOptions(), engine))
        return llm

    def _run(self, loaded: Loaded) -> None:
        LoadedModel.__init__(self, loaded)
        self._core: EngineCore | None = loaded.core
        self._why_gone = "was closed; open the artifact again"
        self._enqueued: list[RequestGroup] = []

    def generate(
        self,
        prompts: Prompts,
        sampling_params: Params | BeamSearchParams = None,
        *,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt; outputs come in the order of the prompts.

        All prompts and parameters are checked before anything runs; an error names the prompt's
        index. ``use_tqdm``: a progress bar where stderr is a terminal, or your own tqdm.
        ``tokenization_kwargs``: add_special_tokens, truncate_prompt_tokens. ``lora_request``,
        ``priority`` and ``mm_processor_kwargs`` are vLLM's, and must stay empty.

        A request that fails while it runs has finish_reason "error" and harms no other; when all
        of a call fail, the first one's error is raised. Given BeamSearchParams, the outputs are the
        beams of ``beam_search``, which is the call to make.
        """
        how = read_call(
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            priority=priority,
            tokenization_kwargs=tokenization_kwargs,
            mm_processor_kwargs=mm_processor_kwargs,
        )
        if isinstance(sampling_params, BeamSearchParams):
            beams.warn_of_generate()
            jobs = self._beam_jobs(prompts, sampling_params, how, None)
            return [request_output(job) for job in jobs]
        groups = self._enqueue(split_prompts(prompts), sampling_params, how)
        return running.finish(self._open_core(), groups, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
        chat_template: TemplateSource | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them; see ``generate``.

        ``continue_final_message`` goes on with the last message instead (then give
        ``add_generation_prompt=False``). ``chat_template_kwargs`` (documents, enable_thinking...)
        reach the template. For content and its format see ChatTemplate.render.
        """
        how = read_call(
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            priority=priority,
            tokenization_kwargs=tokenization_kwargs,
            mm_processor_kwargs=mm_processor_kwargs,
        )
        groups = self._enqueue_chat(
            messages,
            sampling_params,
            how,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
        )
        return running.finish(self._open_core(), groups, use_tqdm)

    def beam_search(
        self,
        prompts: Prompts,
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: UseTqdm = False,
        concurrency_limit: int | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[BeamSearchOutput]:
        """The best ``beam_width`` continuations of each prompt, best first, with the prompt.

        ``concurrency_limit``: prompts that are searched at a time, by default as many as fit.
        ``use_tqdm`` is taken for vLLM's callers and draws nothing.
        """
        how = read_call(use_tqdm=use_tqdm, lora_request=lora_request, priority=priority)
        jobs = self._beam_jobs(prompts, params, how, concurrency_limit)
        return [beam_output(job) for job in jobs]

    def enqueue(
        self, prompts: Prompts, sampling_params: Params = None, **call: Unpack[CallOptions]
    ) -> list[str]:
        """Queue prompts and return their requests' ids; ``call``: as in ``generate``.

        ``wait_for_completion`` runs them.
        """
        check_call_options("enqueue", call)
        groups = self._enqueue(split_prompts(prompts), sampling_params, read_call(**call))
        return self._keep(groups)

    def enqueue_chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        *,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **template: Unpack[ChatOptions],
    ) -> list[str]:
        """Queue conversations, as ``enqueue`` does prompts; ``template``: as in ``chat``."""
        how = read_call(
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            priority=priority,
            tokenization_kwargs=tokenization_kwargs,
        )
        return self._keep(self._enqueue_chat(messages, sampling_params, how, **template))

    def wait_for_completion(self, *, use_tqdm: UseTqdm = True) -> list[RequestOutput]:
        """Run what was enqueued to its end; outputs in the order of enqueueing.

        Errors are as in ``generate``; whatever happens, nothing stays enqueued.
        """
        core = self._open_core()
        check_progress(use_tqdm)
        groups, self._enqueued = self._enqueued, []
        return running.finish(core, groups, use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput]:
        """Continue one prompt and yield what is new after each token.

        ``outputs[0].text`` and ``.token_ids`` hold only what came since the last yield; joined,
        the texts are the text that ``generate`` gives. With ``n`` > 1 ``outputs`` are those that
        have something new, by their ``index``. Checked at once, run as it is iterated;
        leaving the loop early aborts the request. An error while it runs is raised.
        """
        core = self._open_core()
        (group,) = self.requests.groups([prompt], sampling_params)
        return running.stream(core, group)

    def stream_chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        **template: Unpack[ChatOptions],
    ) -> Generator[RequestOutput]:
        """Answer one conversation, as ``stream`` does; ``template``: as in ``chat``."""
        return self.stream(self.requests.renderer(**template)(messages), sampling_params)

    def logits(self, token_ids: Sequence[int], *, chunk: int | None = None) -> scoring.Logits:
        """Logits [S, V] after every token of one sequence; row t follows the tokens 0..t.

        The engine's own steps take ``chunk`` tokens each (1: decode steps), by default as many
        as a prompt's. Nothing else may be running.
        """
        core, info = self._idle_core("logits"), self.engine_info
        ids = self.requests.fitting(token_ids)
        return scoring.sequence_logits(core, info, ids, check_chunk(chunk, len(ids), info.steps))

    def batch_logits(self, sequences: Sequence[Sequence[int]]) -> list[scoring.Logits]:
        """Logits [S, V] of each sequence, all computed in one ragged prefill step.

        With an engine that is batch invariant, bitwise those of each sequence alone.
        """
        core = self._idle_core("batch_logits")
        if not is_list(sequences):
            raise PromptError(
                f"sequences of type {type(sequences).__name__}: a list of lists of token ids is "
                f"needed"
            )
        limit = min(self.engine_info.max_batch, self.engine_info.steps.prefill)
        if not 1 <= len(sequences) <= limit:
            raise PromptError(f"{len(sequences)} sequences: a batch may hold 1 to {limit}")
        ids = for_each(self.requests.fitting, sequences)
        most = self.engine_info.steps.tokens
        if most and len(ids) * max(map(len, ids)) > most:
            raise PromptError(
                f"{len(ids)} sequences of up to {max(map(len, ids))} tokens: a step of this engine "
                f"holds {most} in all; give fewer, or shorter ones"
            )
        return scoring.batch_logits(core, ids)

    def reset_prefix_cache(self) -> bool:
        """Forget what ended requests have computed."""
        self._open_core().reset_prefix_cache()
        return True

    def close(self) -> None:
        """Free the engine; streams that are open end. Closing twice is allowed."""
        if self._core is not None:
            self._core.close()
            self._core = None

    def hand_over(self, owner: str) -> Loaded:
        """What was loaded, for ``owner`` to run and to close; this LLM cannot run any more."""
        core = self._idle_core("hand_over")
        self._core, self._why_gone = None, f"was handed over to {owner}, which runs it now"
        return Loaded(self.manifest, self.plan, core, self.requests, self.speculation)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_core(self) -> EngineCore:
        if self._core is None:
            raise EnginewrightError(f"this LLM {self._why_gone}")
        return self._core

    def _idle_core(self, method: str) -> EngineCore:
        core = self._open_core()
        if core.busy:
            raise RequestError(
                f"{method}() while a stream is running or a request is enqueued: finish it first"
            )
        return core

    def _enqueue(
        self, prompts: Sequence[Any], params: Params, tokenization: Tokenization
    ) -> list[RequestGroup]:
        core = self._open_core()
        groups = self.requests.groups(prompts, params, tokenization)
        running.enqueue(core, groups)
        return groups

    def _enqueue_chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: Params,
        tokenization: Tokenization,
        **template: Unpack[ChatOptions],
    ) -> list[RequestGroup]:
        render = self.requests.renderer(tokenization, **template)
        prompts = for_each(render, split_conversations(messages))
        return self._enqueue(prompts, params, tokenization)

    def _keep(self, groups: Sequence[RequestGroup]) -> list[str]:
        self._enqueued += groups
        return [str(group.row_ids[0]) for group in groups]

    def _beam_jobs(
        self, prompts: Prompts, params: BeamSearchParams, how: Tokenization, limit: int | None
    ) -> list[BeamJob]:
        """The searches of the prompts, run to their ends."""
        core, making = self._open_core(), self.requests.beam_jobs(how)

        def make(prompt: Any) -> BeamJob:
            job = making.make(prompt, params)
            core.check(job)
            return job

        jobs = for_each(make, split_prompts(prompts))
        beams.run(core, jobs, limit)
        return jobs
