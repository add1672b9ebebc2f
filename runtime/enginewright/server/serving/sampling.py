"""A request's fields become SamplingParams or BeamSearchParams, over the model's defaults."""

from __future__ import annotations

from typing import Any

from enginewright.runtime import (
    BeamSearchParams,
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.defaults import Defaults
from enginewright.server.errors import FieldError
from enginewright.server.protocol.common import GenerationRequest
from enginewright.server.serving.structured import structured_outputs

Params = SamplingParams | BeamSearchParams

_SAME = (
    "n",
    "seed",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
    "logprob_token_ids",
    "stream_interval",
)
_OF_BEAMS = (
    "temperature",
    "length_penalty",
    "stop",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "allowed_token_ids",
)
_NOT_OF_BEAMS = (
    "logit_bias",
    "bad_words",
    "prompt_logprobs",
    "logprob_token_ids",
    "repetition_detection",
)


def sampling_params(
    request: GenerationRequest,
    defaults: Defaults,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    **changes: Any,
) -> SamplingParams:
    """Of a request that samples; ``changes`` go over everything."""
    fields = {name: getattr(defaults.params, name) for name in defaults.origins}
    given = {name: getattr(request, name) for name in _SAME}
    fields |= {name: value for name, value in given.items() if value is not None}
    fields |= {
        "max_tokens": max_tokens,
        "logprobs": None if request.logprob_token_ids else logprobs,
        "prompt_logprobs": prompt_logprobs,
        "structured_outputs": structured_outputs(request),
        "repetition_detection": _repetition(request),
        "output_kind": (
            RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        ),
    }
    return SamplingParams.from_optional(**(fields | changes))


def beam_params(
    request: GenerationRequest, max_tokens: int, form: StructuredOutputsParams | None
) -> BeamSearchParams:
    """Of a request with ``use_beam_search``; ``n`` is the width."""
    for name in _NOT_OF_BEAMS:
        if getattr(request, name) is not None:
            raise FieldError(name, f"{name} with use_beam_search is not supported: leave it out")
    given = {name: getattr(request, name) for name in _OF_BEAMS}
    fields = {name: value for name, value in given.items() if value is not None}
    return BeamSearchParams(
        beam_width=request.outputs, max_tokens=max_tokens, structured_outputs=form, **fields
    )


def top_of(request: GenerationRequest, asked: int | None) -> int | None:
    """How many of the likeliest are told beside a token; -1: those that the request names."""
    return -1 if request.logprob_token_ids else asked


def tokens_to_make(asked: int | None, defaults: Defaults) -> int | None:
    """The bound of an output; the one that the model or the server sets holds for every request."""
    bound = defaults.params.max_tokens if "max_tokens" in defaults.origins else None
    found = [each for each in (asked, bound) if each is not None]
    return min(found, default=None)


def check_request(request: GenerationRequest, most_outputs: int) -> None:
    """Refuse what no combination of fields allows."""
    if not 1 <= request.outputs <= most_outputs:
        raise FieldError(
            "n", f"n={request.outputs} is not legal: it must be an integer from 1 to {most_outputs}"
        )
    if request.stream_options is not None and not request.stream:
        raise FieldError("stream_options", "stream_options without stream: set stream to true")
    if request.stream and request.prompt_logprobs is not None:
        raise FieldError("prompt_logprobs", "prompt_logprobs with stream is not supported")
    if request.length_penalty not in (None, 1.0) and not request.use_beam_search:
        raise FieldError("length_penalty", "length_penalty needs use_beam_search")


def _repetition(request: GenerationRequest) -> RepetitionDetectionParams | None:
    given = request.repetition_detection
    if given is None:
        return None
    known = RepetitionDetectionParams.__dataclass_fields__
    for name in given.keys() - known.keys():
        legal = ", ".join(known)
        raise FieldError(
            "repetition_detection", f"repetition_detection has no {name!r:.80}; there are {legal}"
        )
    try:
        return RepetitionDetectionParams(**given)
    except SamplingParamsError as error:
        raise FieldError("repetition_detection", f"repetition_detection: {error}") from error
