"""What a user may ask of a beam search, validated: vLLM's names and defaults, and some of ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling import checks
from enginewright.runtime.sampling.checks import illegal, real, whole
from enginewright.runtime.sampling.params import MAX_SEQUENCES
from enginewright.runtime.sampling.structured import StructuredOutputsParams

logger = logging.getLogger(__name__)

LARGEST_PENALTY = 10.0

Algorithm = Literal["vllm", "hf"]
EarlyStopping = bool | Literal["never"]

_FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")


@dataclass(frozen=True)
class BeamSearchParams:
    """How a beam search goes on and when its beams end.

    Checked and normalised at construction; SamplingParamsError names the field, the value
    and what is legal.
    """

    beam_width: int
    """Beams that are followed, and the most that are returned: 1 to 16384."""
    max_tokens: int
    """Most tokens of a beam, at least 1."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence tokens."""
    temperature: float = 0.0
    """0 to 2, without effect: beams are ranked by log probabilities of the raw logits."""
    length_penalty: float = 1.0
    """-10 to 10: a beam of n tokens, the one that ended it included, scores the sum of their log
    probabilities divided by n to this power; above 0 favours longer beams."""
    include_stop_str_in_output: bool = False
    """Keep the stop string, or the text of EOS, at the end of the text."""
    structured_outputs: StructuredOutputsParams | None = None
    """The form that every beam must have."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    watermarking: bool | None = None
    """Only None or False is supported."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these can be chosen; a tuple once constructed."""
    _: KW_ONLY
    algorithm: Algorithm = "vllm"
    """Whose rules: "vllm", or "hf" for those of transformers' ``generate(num_beams=...)``."""
    early_stopping: EarlyStopping = False
    """When a search by "hf" ends: True: at ``beam_width`` ended beams; False: once the best
    running one scores, at its present length, no better than the worst of those; "never": once
    it cannot at any length."""
    stop: str | Sequence[str] | None = None
    """Strings that end a beam; a tuple once constructed."""
    stop_token_ids: Sequence[int] | None = None
    """Token ids that end a beam, next to the model's own; a tuple once constructed."""
    min_tokens: int = 0
    """EOS, stop tokens and stop strings end no beam before this many tokens."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_stops()
        self._check_kinds()
        if self.temperature:
            logger.warning(
                "temperature=%s has no effect on a beam search: beams are ranked by log "
                "probabilities of the raw logits",
                self.temperature,
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` with the type that it has once constructed."""
        return tuple(self.stop or ())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids`` with the type that it has once constructed."""
        return tuple(self.stop_token_ids or ())

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that a model with this vocabulary does not have."""
        for name in ("stop_token_ids", "allowed_token_ids"):
            checks.in_vocabulary(name, getattr(self, name) or (), vocab_size)

    def _check_numbers(self) -> None:
        self._set(
            beam_width=whole("beam_width", self.beam_width, 1, MAX_SEQUENCES),
            max_tokens=whole("max_tokens", self.max_tokens, 1),
            temperature=real("temperature", self.temperature, 0.0, 2.0),
            length_penalty=real(
                "length_penalty", self.length_penalty, -LARGEST_PENALTY, LARGEST_PENALTY
            ),
        )
        self._set(
            min_tokens=whole(
                "min_tokens", self.min_tokens, 0, self.max_tokens, high_name="max_tokens"
            )
        )

    def _check_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        self._set(
            stop=checks.texts("stop", stop),
            stop_token_ids=checks.token_ids("stop_token_ids", self.stop_token_ids),
        )
        if self.allowed_token_ids is not None:
            allowed = checks.token_ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                raise illegal("allowed_token_ids", self.allowed_token_ids, "at least one id")
            self._set(allowed_token_ids=allowed)

    def _check_kinds(self) -> None:
        for name in _FLAGS:
            checks.flag(name, getattr(self, name))
        checks.member("structured_outputs", self.structured_outputs, StructuredOutputsParams)
        checks.member("watermarking", self.watermarking, bool)
        if self.watermarking:
            raise SamplingParamsError(
                "watermarking=True is unsupported (outputs are not watermarked): leave it at None"
            )
        if not _is_text(self.algorithm, *get_args(Algorithm)):
            raise illegal("algorithm", self.algorithm, "'vllm' or 'hf'")
        if not isinstance(self.early_stopping, bool) and not _is_text(self.early_stopping, "never"):
            raise illegal("early_stopping", self.early_stopping, "True, False or 'never'")
        if self.early_stopping is not False and self.algorithm == "vllm":
            raise illegal(
                "early_stopping",
                self.early_stopping,
                "False with algorithm='vllm', which has no such choice; algorithm='hf' has",
            )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _is_text(value: object, *legal: str) -> bool:
    """An array would compare with a text item by item."""
    return isinstance(value, str) and value in legal
