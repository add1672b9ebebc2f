"""Every illegal value of every sampling parameter, one at a time: each is told with what is legal.

A field has a row of RULES: what kind of value it takes, which gives it the wrong types, and what
is wrong for it alone. A new field needs a new row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.runtime.sampling.params import SamplingParams

NAN, INF = math.nan, math.inf
ARRAY = np.zeros(2)
# Of no kind that any field takes.
OBJECTS = (object(), 1j, b"1", ARRAY, np.array(5), {1, 2})
NUMBERS_THAT_ARE_NONE = ("1", [1], {}, *OBJECTS)


@dataclass(frozen=True)
class Rule:
    """``legal``: what a message must say; ``wrong``: values, each with that or words of its own."""

    legal: str
    wrong: tuple[Any, ...]
    own_words: tuple[tuple[Any, str], ...] = ()

    def rows(self) -> Iterator[tuple[Any, str]]:
        yield from ((value, self.legal) for value in self.wrong)
        yield from self.own_words


def real(legal: str, *outside: float) -> Rule:
    """A finite number within bounds; no bool."""
    return Rule(legal, (*outside, NAN, INF, -INF, 10**400, True, None, *NUMBERS_THAT_ARE_NONE))


def whole(legal: str, *outside: int, nullable: bool = False, bools: bool = False) -> Rule:
    """An integer within bounds; a bool only for ``bools``, None only if ``nullable``."""
    wrong = (*outside, 1.0, 1.5, NAN, INF, np.float32(1), *NUMBERS_THAT_ARE_NONE)
    wrong += (() if nullable else (None,)) + (() if bools else (True, False, np.bool_(True)))
    return Rule(legal, wrong)


def flag() -> Rule:
    """True or False, nothing else."""
    return Rule("True or False", (None, 0, 1, "yes", "", [], np.bool_(True), NAN, *OBJECTS))


def maybe(kind: str) -> Rule:
    """An instance of a class, or None."""
    wrong = (0, 1, "on", [1], [], {"a": 1}, {}, NAN, *OBJECTS)
    return Rule(f"a {kind}, or None", wrong)


def ids(*own_words: tuple[Any, str]) -> Rule:
    """A list of token ids."""
    lists = tuple((value, "a list") for value in (5, 1.5, NAN, True, "12", b"12", np.array(5)))
    items: tuple[Any, ...] = ([-1], [3, -2], [1.0], [NAN], [True], ["1"], [None], [[1]], ARRAY)
    return Rule("at least 0", (*items, {-1}), lists + own_words)


def texts(*own_words: tuple[Any, str]) -> Rule:
    """A list of texts, none of them empty."""
    items = ([""], ["a", ""], [1], [None], [b"a"], [["a"]], ARRAY)
    lists = tuple((value, "a list") for value in (7, 1.5, True, b"a", np.array(5)))
    return Rule("at least one character", items, lists + own_words)


def only(rule: Rule, *unsupported: Any) -> Rule:
    """A field of which the neutral value alone is supported."""
    extra = tuple((value, "leave it at") for value in unsupported)
    return dataclasses.replace(rule, own_words=rule.own_words + extra)


SCORED = (
    ([], "1 to 128 ids"),
    ([1, 1], "1 to 128 ids, each once"),
    (list(range(129)), "1 to 128 ids"),
)
RULES: dict[str, Rule] = {
    "temperature": real("from 0 to 2", -0.1, -1e-9, 2.1),
    "top_p": real("above 0 to 1", 0, 0.0, -0.5, 1.01),
    "top_k": whole("an integer of at least -1", -2),
    "min_p": real("from 0 to 1", -0.1, 1.1),
    "seed": whole("an integer from -9223372036854775808", 2**64, -(2**63) - 1, nullable=True),
    "n": whole("an integer from 1 to 16384", 0, -1, 16385),
    "stop": texts(("", "at least one character")),
    "stop_token_ids": ids(),
    "ignore_eos": flag(),
    "max_tokens": whole("an integer of at least 1", 0, -1, nullable=True),
    "min_tokens": whole("an integer from 0 to 16 (max_tokens)", -1, 17),
    "skip_special_tokens": flag(),
    "spaces_between_special_tokens": only(flag(), False),
    "include_stop_str_in_output": flag(),
    "detokenize": flag(),
    "repetition_penalty": real("above 0", 0, -1.0),
    "presence_penalty": real("from -2 to 2", -2.5, 2.5),
    "frequency_penalty": real("from -2 to 2", -2.5, 2.5),
    "logit_bias": Rule(
        "a dict of token id to bias, or None",
        (3, True, "1", NAN, [(1, 2.0)], *OBJECTS),
        (
            *(({key: 2.0}, "at least 0") for key in (-1, "1", 1.0, NAN, True, None)),
            *(({7: bias}, "from -1e+30 to 1e+30") for bias in (NAN, INF, -INF, 1e31, "1", None)),
        ),
    ),
    "allowed_token_ids": ids(([], "at least one id"), ((), "at least one id")),
    "bad_words": texts(("word", "a list")),
    "logits_processors": Rule(
        "a list of functions",
        ([3], [None], [NAN], [[len]], ARRAY),
        tuple((value, "a list") for value in (len, 3, True, b"a", np.array(5))),
    ),
    "processor_order": Rule(
        "'vllm' or 'hf'", (None, "", "llama", "VLLM", 0, True, ["vllm"], np.array(["hf"]), *OBJECTS)
    ),
    "repetition_detection": maybe("RepetitionDetectionParams"),
    "structured_outputs": maybe("StructuredOutputsParams"),
    "logprobs": whole("an integer of at least -1", -2, nullable=True, bools=True),
    "prompt_logprobs": whole("an integer of at least -1", -2, nullable=True, bools=True),
    "prompt_logprob_token_ids": ids(*SCORED),
    "prompt_logprob_start": whole("an integer of at least 0", -1, nullable=True),
    "logprob_token_ids": ids(*SCORED),
    "flat_logprobs": flag(),
    "output_kind": Rule("a RequestOutputKind", (None, 0, 1, 2, True, "DELTA", NAN, *OBJECTS)),
    "stream_interval": whole("an integer of at least 1", 0, -1, nullable=True),
    "skip_clone": flag(),
    "skip_reading_prefix_cache": maybe("bool"),
    "watermarking": only(maybe("bool"), True),
    "thinking_token_budget": only(whole("at least -1", -2, nullable=True), 0, 100),
    "extra_args": only(Rule("a Mapping", (1, True, "a", [1], [], NAN, *OBJECTS)), {"a": 1}),
    "routed_experts_prompt_start": only(whole("at least 0", -1), 1, 5),
    "trace_decode_token_ids": only(ids(), [1, 2], np.array([3, 4])),
}
ROWS = [
    pytest.param(field, value, legal, id=f"{field}-{number}")
    for field, rule in RULES.items()
    for number, (value, legal) in enumerate(rule.rows())
]


@pytest.mark.parametrize(("field", "value", "legal"), ROWS)
def test_an_illegal_value_is_told(field: str, value: Any, legal: str) -> None:
    with pytest.raises(SamplingParamsError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert message.startswith((f"{field}=", f"{field}["))
    assert legal in message
    assert any(text in message for text in spellings(value)), "the message does not hold the value"


def spellings(value: Any) -> Iterator[str]:
    """How the value may stand in the message: it, or the item that is wrong."""
    yield repr(value)[:100]
    if isinstance(value, np.ndarray) and value.ndim:
        yield repr(tuple(value.tolist()))
    if isinstance(value, (list, set, dict)) or (isinstance(value, np.ndarray) and value.ndim):
        yield from (repr(item)[:100] for item in value)
    if isinstance(value, dict):
        yield from (repr(item) for item in value.values())


def test_every_field_has_its_rule() -> None:
    assert list(RULES) == [field.name for field in dataclasses.fields(SamplingParams)]
    assert all(any(rule.rows()) for rule in RULES.values())


def test_what_a_rule_leaves_out_is_legal() -> None:
    """The border of each range belongs to it, or the table would prove little."""
    SamplingParams(temperature=2, top_p=1, min_p=1, top_k=-1, n=16384, max_tokens=1, min_tokens=1)
    SamplingParams(presence_penalty=-2, frequency_penalty=2, repetition_penalty=1e-3)
    SamplingParams(logprobs=-1, prompt_logprobs=-1, stream_interval=1, prompt_logprob_start=0)
    SamplingParams(seed=2**64 - 1, logit_bias={0: -1e30}, allowed_token_ids=[0], bad_words=["a"])
    SamplingParams(logprob_token_ids=list(range(128)), stop_token_ids=np.array([1, 1]))
    SamplingParams(stop=["a", "a"], output_kind=RequestOutputKind.DELTA, max_tokens=None)
