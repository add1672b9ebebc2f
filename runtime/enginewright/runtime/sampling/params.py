"""What a user may ask of sampling, validated: vLLM's names, defaults and rules."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling import checks
from enginewright.runtime.sampling.checks import INFINITY, illegal, maybe_whole, real, whole
from enginewright.runtime.sampling.custom import LogitsProcessor, check_named
from enginewright.runtime.sampling.kinds import RequestOutputKind, SamplingType
from enginewright.runtime.sampling.repetition import RepetitionDetectionParams
from enginewright.runtime.sampling.structured import StructuredOutputsParams

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5
LOWEST_TEMPERATURE = 0.01
SEED_RANGE = (-(2**63), 2**64 - 1)
MAX_SEQUENCES = 16384
MAX_LOGPROB_TOKEN_IDS = 128
LARGEST_BIAS = 1e30
CLAMPED_BIAS = 100.0

ProcessorOrder = Literal["vllm", "hf"]

_FLAGS = (
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "detokenize",
    "spaces_between_special_tokens",
    "flat_logprobs",
    "skip_clone",
)

# Fields that are there for vLLM's callers: their neutral values, and why no other is supported.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "watermarking": ((None, False), "outputs are not watermarked"),
    "spaces_between_special_tokens": ((True,), "the text is the tokenizer's own decoding"),
    "extra_args": ((None, {}), "nothing here reads them; give logits_processors"),
    "thinking_token_budget": ((None,), "thinking is not told from the answer"),
    "routed_experts_prompt_start": ((0,), "routing data is not returned"),
    "trace_decode_token_ids": ((None,), "tokens cannot be forced"),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it ends.

    Checked and normalised at construction; SamplingParamsError names the field, the value
    and what is legal.
    """

    temperature: float = 1.0
    """0 to 2; below 1e-5 the likeliest token is taken (greedy) and top_p, top_k and min_p
    have no effect; from there to 0.01 it is raised to 0.01."""
    top_p: float = 1.0
    """Above 0, up to 1: sample from the fewest likeliest tokens that together reach it."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 or -1: from all."""
    min_p: float = 0.0
    """0 to 1: leave out tokens less likely than this times the likeliest one."""
    seed: int | None = None
    """Makes the request repeatable; None or -1: fresh entropy. The draws do not depend on what
    runs beside it, nor do the logits on an engine that declares itself batch invariant."""
    n: int = 1
    """Outputs of one prompt, 1 to 16384, each with random numbers of its own; greedy: only 1."""
    stop: str | Sequence[str] | None = None
    """Strings that end the output; a tuple once constructed."""
    stop_token_ids: Sequence[int] | None = None
    """Token ids that end the output, next to the model's own; a tuple once constructed."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence tokens."""
    max_tokens: int | None = 16
    """Most tokens to generate, at least 1; None: until the context is full."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens cannot be chosen before this many tokens."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """Only True is supported."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text."""
    detokenize: bool = True
    """Make text from the tokens; needed for ``stop``."""
    repetition_penalty: float = 1.0
    """Above 0; more than 1 discourages tokens of the prompt and the output."""
    presence_penalty: float = 0.0
    """-2 to 2; subtracted from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """-2 to 2; subtracted as often as a token is in the output."""
    logit_bias: Mapping[int, float] | None = None
    """Token id -> what is added to its logit."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these can be chosen; a tuple once constructed."""
    bad_words: Sequence[str] | None = None
    """Words that are never completed, at the start or after a space; a tuple once constructed."""
    logits_processors: Sequence[LogitsProcessor | str] | None = None
    """Called for each token with the output's ids and a copy of the logits [V] (of three
    parameters: the prompt's ids first); what they return takes the logits' place. A class is
    instantiated for each output; a text names an installed processor."""
    processor_order: ProcessorOrder = "vllm"
    """In whose order processors and truncations apply: "vllm" or "hf"."""
    repetition_detection: RepetitionDetectionParams | None = None
    """End an output that repeats itself, with finish_reason "repetition"."""
    structured_outputs: StructuredOutputsParams | None = None
    """What form the output must have; needs the extra ``structured``."""
    logprobs: int | None = None
    """Give the log probability of the chosen token and of this many likeliest ones; -1: all."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt after the first."""
    prompt_logprob_token_ids: Sequence[int] | None = None
    """Give the log probabilities of these tokens at each position of the prompt."""
    prompt_logprob_start: int | None = None
    """First position for ``prompt_logprob_token_ids``; it scores the token after it."""
    logprob_token_ids: Sequence[int] | None = None
    """Up to 128 tokens whose log probabilities to give in place of the likeliest ones'."""
    flat_logprobs: bool = False
    """Give log probabilities as FlatLogprobs: the same, in few long lists."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    """What the outputs of a request that is followed as it runs hold; ``LLM.generate`` gives the
    final one and ``LLM.stream`` deltas, whatever this says."""
    stream_interval: int | None = None
    """Tokens between two streamed outputs; the first and the last come at once."""
    skip_clone: bool = False
    """``clone`` copies shallowly."""
    skip_reading_prefix_cache: bool | None = None
    """Compute the prompt although its beginning may be cached; None: where it must be scored."""
    watermarking: bool | None = None
    """Only None is supported."""
    thinking_token_budget: int | None = None
    """Only None, or -1 for no limit, is supported."""
    extra_args: Mapping[str, Any] | None = None
    """Only None is supported."""
    routed_experts_prompt_start: int = 0
    """Only 0 is supported."""
    trace_decode_token_ids: Sequence[int] | None = None
    """Only None is supported."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_lengths()
        self._check_stops()
        self._check_tokens()
        self._check_logprobs()
        self._check_kinds()
        self._check_supported()
        if self.greedy:
            if self.n > 1:
                raise illegal("n", self.n, "1 when sampling is greedy (temperature=0)")
            self._set(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
        elif self.temperature < LOWEST_TEMPERATURE:
            logger.warning(
                "temperature=%s could overflow; %s is used", self.temperature, LOWEST_TEMPERATURE
            )
            self._set(temperature=LOWEST_TEMPERATURE)

    @classmethod
    def from_optional(cls, *, logit_bias: Mapping[Any, float] | None = None, **fields: Any) -> Self:
        """As the constructor, but None takes a field's default.

        Keys of ``logit_bias`` may be text, as in JSON; its values are cut at -100 and 100.
        """
        nullable = {field.name for field in dataclasses.fields(cls) if field.default is None}
        nullable.add("max_tokens")
        given = {
            name: value for name, value in fields.items() if value is not None or name in nullable
        }
        return cls(logit_bias=_clamped(logit_bias), **given)

    def clone(self) -> Self:
        """A copy; deep, unless ``skip_clone`` says that this one is not shared."""
        return copy.copy(self) if self.skip_clone else copy.deepcopy(self)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def sampling_type(self) -> SamplingType:
        """Greedy, by draws, or by draws that can be repeated."""
        if self.greedy:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` with the type that it has once constructed."""
        return tuple(self.stop or ())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids`` with the type that it has once constructed."""
        return tuple(self.stop_token_ids or ())

    @property
    def num_logprobs(self) -> int | None:
        """Log probabilities beside the chosen token's; None when none are given at all."""
        if self.logprobs is None and self.logprob_token_ids is not None:
            return len(self.logprob_token_ids)
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of the prompt are asked for."""
        return self.prompt_logprobs is not None or self.prompt_logprob_token_ids is not None

    @property
    def reads_cache(self) -> bool:
        """Whether what was computed of the same beginning may be taken over."""
        return not (self.skip_reading_prefix_cache or self.scores_prompt)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that a model with this vocabulary does not have."""
        for name in (
            "stop_token_ids",
            "allowed_token_ids",
            "logit_bias",
            "logprob_token_ids",
            "prompt_logprob_token_ids",
        ):
            checks.in_vocabulary(name, getattr(self, name) or (), vocab_size)

    def _check_numbers(self) -> None:
        self._set(
            temperature=real("temperature", self.temperature, 0.0, 2.0),
            top_p=real("top_p", self.top_p, 0.0, 1.0, open_low=True),
            top_k=max(0, whole("top_k", self.top_k, -1)),
            min_p=real("min_p", self.min_p, 0.0, 1.0),
            n=whole("n", self.n, 1, MAX_SEQUENCES),
            repetition_penalty=real(
                "repetition_penalty", self.repetition_penalty, 0.0, INFINITY, open_low=True
            ),
            presence_penalty=real("presence_penalty", self.presence_penalty, -2.0, 2.0),
            frequency_penalty=real("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
        )
        seed = maybe_whole("seed", self.seed, *SEED_RANGE)
        self._set(seed=None if seed == -1 else seed)

    def _check_lengths(self) -> None:
        self._set(
            max_tokens=maybe_whole("max_tokens", self.max_tokens, 1),
            stream_interval=maybe_whole("stream_interval", self.stream_interval, 1),
        )
        most = INFINITY if self.max_tokens is None else self.max_tokens
        self._set(min_tokens=whole("min_tokens", self.min_tokens, 0, most, high_name="max_tokens"))

    def _check_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        self._set(
            stop=checks.texts("stop", stop),
            stop_token_ids=checks.token_ids("stop_token_ids", self.stop_token_ids),
        )
        if self.stop and not self.detokenize:
            raise SamplingParamsError(
                f"stop={self.stop!r} needs text: set detokenize=True, or use stop_token_ids"
            )

    def _check_tokens(self) -> None:
        if self.allowed_token_ids is not None:
            allowed = checks.token_ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                raise illegal("allowed_token_ids", self.allowed_token_ids, "at least one id")
            self._set(allowed_token_ids=allowed)
        self._set(bad_words=checks.texts("bad_words", self.bad_words))
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise illegal("logit_bias", self.logit_bias, "a dict of token id to bias, or None")
            self._set(
                logit_bias={
                    whole("logit_bias", token, 0): real(
                        f"logit_bias[{token}]", bias, -LARGEST_BIAS, LARGEST_BIAS
                    )
                    for token, bias in self.logit_bias.items()
                }
            )

    def _check_logprobs(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if isinstance(value, bool):
                value = 1 if value else None
            self._set(**{name: maybe_whole(name, value, -1)})
        self._check_scored_ids()
        start = maybe_whole("prompt_logprob_start", self.prompt_logprob_start, 0)
        self._set(prompt_logprob_start=start)
        count = None if self.logprob_token_ids is None else len(self.logprob_token_ids)
        if count is not None and self.logprobs not in (None, count):
            raise illegal("logprobs", self.logprobs, f"None or {count}, as many logprob_token_ids")

    def _check_scored_ids(self) -> None:
        for name in ("logprob_token_ids", "prompt_logprob_token_ids"):
            value = getattr(self, name)
            if value is None:
                continue
            ids = checks.token_ids(name, value)
            if not 1 <= len(ids) == len(value) <= MAX_LOGPROB_TOKEN_IDS:
                raise illegal(name, value, f"1 to {MAX_LOGPROB_TOKEN_IDS} ids, each once")
            self._set(**{name: ids})

    def _check_kinds(self) -> None:
        for name in _FLAGS:
            checks.flag(name, getattr(self, name))
        for name in ("watermarking", "skip_reading_prefix_cache"):
            checks.member(name, getattr(self, name), bool)
        checks.member("repetition_detection", self.repetition_detection, RepetitionDetectionParams)
        checks.member("structured_outputs", self.structured_outputs, StructuredOutputsParams)
        checks.member("extra_args", self.extra_args, Mapping)
        if not isinstance(self.output_kind, RequestOutputKind):
            raise illegal("output_kind", self.output_kind, "a RequestOutputKind")
        order = self.processor_order
        if not isinstance(order, str) or order not in get_args(ProcessorOrder):
            raise illegal("processor_order", self.processor_order, "'vllm' or 'hf'")
        processors = checks.sequence("logits_processors", self.logits_processors)
        for processor in processors:
            if isinstance(processor, str):
                check_named(processor)
            elif not callable(processor):
                raise illegal("logits_processors", processor, "a list of functions, or None")
        self._set(logits_processors=processors)

    def _check_supported(self) -> None:
        whole("routed_experts_prompt_start", self.routed_experts_prompt_start, 0)
        budget = maybe_whole("thinking_token_budget", self.thinking_token_budget, -1)
        self._set(thinking_token_budget=None if budget == -1 else budget)
        if self.trace_decode_token_ids is not None:
            traced = checks.token_ids("trace_decode_token_ids", self.trace_decode_token_ids)
            self._set(trace_decode_token_ids=traced)
        for name, (neutral, reason) in _NEUTRAL.items():
            value = getattr(self, name)
            if value not in neutral:
                raise SamplingParamsError(
                    f"{name}={value!r:.200} is unsupported ({reason}): leave it at {neutral[0]!r}"
                )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _clamped(logit_bias: Mapping[Any, float] | None) -> dict[int, float] | None:
    if not isinstance(logit_bias, Mapping):
        return logit_bias
    clamped, wrong = {}, []
    for key, bias in logit_bias.items():
        try:
            token = int(key)
        except (TypeError, ValueError):
            wrong.append(key)
            continue
        number = real(f"logit_bias[{key}]", bias, -LARGEST_BIAS, LARGEST_BIAS)
        clamped[token] = min(CLAMPED_BIAS, max(-CLAMPED_BIAS, number))
    if wrong:
        raise SamplingParamsError(
            f"logit_bias has the keys {wrong!r:.200}: they must be integers, the ids of tokens"
        )
    return clamped
