"""What an answer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.runtime import RequestOutput
from enginewright.server.options import ServeOptions
from enginewright.server.protocol.common import StreamOptions


@dataclass(frozen=True)
class UsageWanted:
    """Where a stream has usage: in a chunk of its own at the end, or in each chunk as well."""

    at_end: bool
    in_each: bool
    details: bool

    @classmethod
    def of(cls, given: StreamOptions | None, options: ServeOptions) -> UsageWanted:
        """What the request asks for, or the server does for all."""
        if options.enable_force_include_usage:
            return cls(True, True, options.enable_prompt_tokens_details)
        at_end = given is not None and bool(given.include_usage)
        in_each = at_end and given is not None and bool(given.continuous_usage_stats)
        return cls(at_end, in_each, options.enable_prompt_tokens_details)


def usage(
    prompt: int, completion: int, cached: int | None = None, thoughts: int | None = None
) -> dict[str, Any]:
    """``cached``, ``thoughts``: tokens that the details tell; None: they are not told."""
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
    }
    if cached is not None:
        found["prompt_tokens_details"] = {"cached_tokens": cached}
    if thoughts is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return found


def usage_of(
    outputs: Sequence[RequestOutput], details: bool, thoughts: int | None = None
) -> dict[str, Any]:
    """Of whole answers; the outputs of one prompt share it."""
    cached = sum(output.num_cached_tokens or 0 for output in outputs) if details else None
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    made = sum(len(each.token_ids) for output in outputs for each in output.outputs)
    return usage(prompt, made, cached, thoughts)
