"""One output on its way: its ids so far, its text, and when it ends.

| tensor | shape | dtype   | meaning                                    |
|--------|-------|---------|--------------------------------------------|
| logits | [V]   | float32 | the logits after the request's last token  |
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from enginewright.runtime.engine import RowLogits
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.requests.flat_logprobs import FlatLogprobs
from enginewright.runtime.requests.outputs import CompletionOutput, FinishReason, SampleLogprobs
from enginewright.runtime.requests.prompt_scores import PromptScores, TokenText, with_text
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.repetition import repeats
from enginewright.runtime.sampling.sampler import SampledToken, Sampler
from enginewright.runtime.text.detokenizer import IncrementalDetokenizer


@dataclass(frozen=True)
class Request:
    """One output that was asked for and found valid: it fits the engine's limits and vocabulary.

    ``index``: which of the ``n`` outputs of its prompt.
    """

    id: int
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    index: int = 0


class Generation:
    """The running state of an output. ``accept`` takes one step's logits.

    ``token_text`` gives the text of a single token, for log probabilities; a generation without
    a detokenizer makes no text. Of the outputs of one prompt, the first scores it.
    """

    def __init__(
        self,
        request: Request,
        sampler: Sampler,
        *,
        max_context: int,
        eos_token_ids: Collection[int] = (),
        detokenizer: IncrementalDetokenizer | None = None,
        token_text: TokenText | None = None,
    ) -> None:
        self.request = request
        self.output_token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: EnginewrightError | None = None
        self._stop_reason: int | str | None = None
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._token_text = token_text
        self._eos = frozenset(() if request.params.ignore_eos else eos_token_ids)
        self._room = max_context - len(request.prompt_token_ids)
        self._logprobs: SampleLogprobs = FlatLogprobs() if request.params.flat_logprobs else []
        self._cumulative_logprob = 0.0
        scored = request.params.scores_prompt and request.index == 0
        prompt = request.prompt_token_ids
        self.prompt_scores = PromptScores(request.params, prompt, token_text) if scored else None
        self.arrived = time.perf_counter()
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self._told_tokens = 0
        self._told_text = 0
        self._told_end = False

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def exact(self) -> bool:
        """Whether asking again must give the same tokens."""
        return self._sampler.repeatable

    def accept(self, logits: RowLogits) -> None:
        """Choose the next token and see whether it ends the request.

        An error in doing so (say, logits that are not numbers) ends this request alone.
        """
        assert not self.finished
        try:
            sampled = self._sampler.sample(logits, self.output_token_ids)
        except EnginewrightError as error:
            self.fail(error)
            return
        self.first_token_at = self.first_token_at or time.perf_counter()
        self.output_token_ids.append(sampled.token_id)
        self._note_logprobs(sampled)
        self._note_text(sampled.token_id)
        self._see_whether_ended(sampled.token_id)

    @property
    def draft_limit(self) -> int:
        """How many tokens may be drafted: all that may come but the last, which needs no draft."""
        most = min(self.request.params.max_tokens or self._room, self._room)
        return most - len(self.output_token_ids) - 1

    def possible(self, draft: list[int]) -> list[int]:
        """The leading tokens of a draft that may come, up to one that ends the output."""
        kept = self._sampler.possible(draft)
        ends = self._eos | set(self.request.params.stop_ids)
        end = next((at for at, token in enumerate(kept) if token in ends), len(kept))
        return kept[: end + 1]

    def fail(self, error: EnginewrightError) -> None:
        """End the request; it alone has gone wrong."""
        self.error = error
        self._finish("error", str(error))

    def abort(self) -> None:
        """End the request as it is; nothing changes if it has ended already."""
        if not self.finished:
            self._finish("abort", None)

    @property
    def has_news(self) -> bool:
        """Whether no delta told the end, or as many tokens as ``stream_interval`` wants."""
        if self.finished:
            return not self._told_end
        untold = len(self.output_token_ids) - self._told_tokens
        wanted = self.request.params.stream_interval or 1
        return untold > 0 and (untold >= wanted or not self._told_tokens)

    def output(self) -> CompletionOutput:
        """Everything so far."""
        return self._output(0, 0)

    def delta(self) -> CompletionOutput:
        """What came since the last delta; ``cumulative_logprob`` stays a sum over all."""
        output = self._output(self._told_tokens, self._told_text)
        self._told_tokens = len(self.output_token_ids)
        self._told_text = len(self._text)
        self._told_end = self.finished
        return output

    @property
    def _text(self) -> str:
        return "" if self._detokenizer is None else self._detokenizer.text

    def _note_logprobs(self, sampled: SampledToken) -> None:
        if sampled.top is None or sampled.logprob is None:
            return
        self._cumulative_logprob += sampled.logprob
        self._logprobs.append(with_text(sampled.top, self._token_text))

    def _note_text(self, token: int) -> None:
        """EOS shows only where the stop is asked for: not every tokenizer calls it special."""
        hidden = token in self._eos and not self.request.params.include_stop_str_in_output
        if self._detokenizer is not None and not hidden:
            self._detokenizer.push(token)

    def _see_whether_ended(self, token: int) -> None:
        params = self.request.params
        count = len(self.output_token_ids)
        stop_string = None if self._detokenizer is None else self._detokenizer.stop_reason
        if token in self._eos:
            self._finish("stop", None)
        elif token in params.stop_ids:
            self._finish("stop", token)
        elif stop_string is not None:
            self._finish("stop", stop_string)
        elif self._sampler.complete:
            self._finish("stop", None)
        elif count in (params.max_tokens, self._room):
            self._finish("length", None)
        elif self._goes_round():
            self._finish("repetition", "repetition_detected")

    def _goes_round(self) -> bool:
        params = self.request.params
        if params.repetition_detection is None or len(self.output_token_ids) < params.min_tokens:
            return False
        return repeats(self.output_token_ids, params.repetition_detection)

    def _finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if self._detokenizer is not None:
            self._detokenizer.finish()
            found = self._detokenizer.stop_reason
            if reason == "length" and found is not None:  # completed by what was held back
                reason, stop_reason = "stop", found
        self.finish_reason = reason
        self._stop_reason = stop_reason
        self.finished_at = time.perf_counter()

    def _output(self, first_token: int, first_character: int) -> CompletionOutput:
        with_logprobs = self.request.params.num_logprobs is not None
        return CompletionOutput(
            index=self.request.index,
            text=self._text[first_character:],
            token_ids=self.output_token_ids[first_token:],
            cumulative_logprob=self._cumulative_logprob if with_logprobs else None,
            logprobs=self._logprobs[first_token:] if with_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
