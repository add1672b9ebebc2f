"""Fields that clients of vLLM and OpenAI know and an engine of ours cannot honour.

At a value that asks for nothing a field is accepted; at any other the request is refused, and the
answer names the field. Fields that only describe the request to its service are ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from enginewright.runtime.sampling.checks import among
from enginewright.server.errors import FieldError
from enginewright.server.protocol.common import GenerationRequest

logger = logging.getLogger(__name__)

_EMPTY: tuple[Any, ...] = (None, False, "", [], {})
_NAMED = 5
_TEXT_ONLY = "engines take and give text only"
_USE = "use structured_outputs"

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "audio": (_EMPTY, _TEXT_ONLY),
    "cache_salt": (_EMPTY, "what prompts have in common is shared by all requests"),
    "data_parallel_rank": (_EMPTY, "one engine serves a model"),
    "ec_transfer_params": (_EMPTY, "caches are not moved between machines"),
    "function_call": ((None, "none"), "give tools and tool_choice, which took its place"),
    "functions": (_EMPTY, "give tools, which took its place"),
    "guided_choice": (_EMPTY, _USE),
    "guided_decoding_backend": (_EMPTY, "there is one backend, llguidance"),
    "guided_grammar": (_EMPTY, _USE),
    "guided_json": (_EMPTY, _USE),
    "guided_regex": (_EMPTY, _USE),
    "kv_transfer_params": (_EMPTY, "caches are not moved between machines"),
    "logits_processors": (_EMPTY, "a request brings no code; give them to the server"),
    "media_io_kwargs": (_EMPTY, _TEXT_ONLY),
    "mm_processor_kwargs": (_EMPTY, _TEXT_ONLY),
    "modalities": ((None, [], ["text"]), _TEXT_ONLY),
    "prediction": (_EMPTY, "the server's speculative_config drafts tokens"),
    "priority": ((None, 0), "requests run in the order of arrival"),
    "prompt_embeds": (_EMPTY, "engines take token ids only"),
    "spaces_between_special_tokens": ((None, True), "the text is the tokenizer's own decoding"),
    "suffix": (_EMPTY, "engines continue a text, they do not fill a gap"),
    "thinking_token_budget": ((None, -1), "thoughts are not counted"),
    "truncation_side": ((None, "left"), "the last tokens of a prompt are kept"),
    "vllm_xargs": (_EMPTY, "nothing here reads them"),
    "watermarking": (_EMPTY, "outputs are not watermarked"),
    "web_search_options": (_EMPTY, "nothing is searched"),
}
IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "verbosity",
    }
)


def check_supported(request: GenerationRequest) -> None:
    """Refuse what cannot be honoured, log what is not known."""
    given = {**(request.model_extra or {}), "suffix": getattr(request, "suffix", None)}
    for name, value in given.items():
        if name in REFUSED:
            legal, reason = REFUSED[name]
            if not among(value, legal):
                raise FieldError(
                    name, f"{name}={value!r:.80} is unsupported ({reason}): leave it out"
                )
    _log_unknown([name for name in given if name not in REFUSED and name not in IGNORED])


def _log_unknown(names: Sequence[str]) -> None:
    """One line, however many there are: a client must not fill the log."""
    if not names:
        return
    told = ", ".join(f"{name!r:.80}" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    logger.info("a request has unknown fields, which are ignored: %s%s", told, more)
