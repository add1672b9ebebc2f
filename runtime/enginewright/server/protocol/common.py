"""Fields that completions and chat have in common, and what every answer counts."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
LogitBias = Annotated[
    dict[str, float], Field(description="Token id, as text, to what is added to its logit.")
]
Prompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        }
    ),
]


class StreamOptions(BaseModel):
    """``include_usage``: in a last chunk. ``continuous_usage_stats``: in every chunk."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(BaseModel):
    """A schema under a name; what the answer is held to."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str = "schema"
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What form the answer must have."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None


class GenerationRequest(BaseModel):
    """What both endpoints take. Fields that are SamplingParams' have its meanings.

    Unknown fields are allowed, and ignored with a line in the log; those that would change the
    answer and cannot be honoured are refused by name, see serving/unsupported.py.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: int | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: LogitBias | None = None
    user: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    repetition_detection: dict[str, Any] | None = None
    stream_interval: int | None = None
    use_beam_search: bool | None = False
    length_penalty: float | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    request_id: str | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None

    @property
    def outputs(self) -> int:
        """How many of each prompt."""
        return 1 if self.n is None else self.n


def new_id(prefix: str, given: str | None = None) -> str:
    """An id of an answer, with the prefix of its API; ``given``: the client's id of its request."""
    return prefix + (given or uuid.uuid4().hex)
