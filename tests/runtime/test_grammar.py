"""Structured outputs: what is generated has the form, whatever the logits say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from enginewright.runtime import SamplingParams, StructuredOutputsParams
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.outputs import CompletionOutput
from enginewright.runtime.sampling.grammar import Grammar, GrammarCompiler
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.text.detokenizer import IncrementalDetokenizer
from enginewright.runtime.text.tokenizer import Tokenizer

CORPUS = [
    '{"name": "Ada", "age": 36, "tags": ["a", "bc"], "ok": true, "none": null}',
    "yes no maybe abc abcabc 2024-11-21 straße Привет 漢字 👋🏽",
]
SPECIALS = ("<s>", "</s>", "<|call|>", "<|end|>")
BOS, EOS, CALL, END = range(4)
EXTRA = 5
"""Ids that the model has and the tokenizer does not."""


def byte_level() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[AddedToken(each, special=True) for each in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return Tokenizer(backend)


def with_byte_fallback() -> Tokenizer:
    """Spelt as SentencePiece's models are: a sign for the space, <0x..> for lone bytes."""
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdexyz019{}:,.-"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [("▁", "a"), ("a", "b"), ("ab", "c"), ("x", "y"), ("1", "0")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    backend = Backend(models.BPE(vocabulary, merges, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(each, special=True) for each in SPECIALS])
    return Tokenizer(backend)


@dataclass(frozen=True)
class Model:
    """A tokenizer with its compiler; by default the model has a few ids more."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler
    vocab_size: int

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, eos: Sequence[int] = (EOS,), vocab_size: int | None = None
    ) -> Model:
        size = vocab_size or tokenizer.vocab_size + EXTRA
        return cls(tokenizer, GrammarCompiler(tokenizer, size, eos), size)

    def compile(self, **form: Any) -> Grammar:
        return self.compiler.compile(StructuredOutputsParams(**form))

    def run(
        self, grammar: Grammar, seed: int, eos: Sequence[int] = (EOS,), **fields: Any
    ) -> CompletionOutput:
        """The output that random logits give."""
        fields = {"max_tokens": 300, "seed": seed} | fields
        params = SamplingParams(**fields)
        generation = Generation(
            Request(0, None, (BOS,), params),
            Sampler(params, self.vocab_size, eos, (BOS,), grammar=grammar),
            max_context=1000,
            eos_token_ids=eos,
            detokenizer=IncrementalDetokenizer(
                self.tokenizer, params.stop_strings, prompt_token_ids=(BOS,)
            ),
        )
        logits = np.random.default_rng(seed)
        while not generation.finished:
            generation.accept(logits.normal(0, 4, self.vocab_size).astype(np.float32))
        if generation.error is not None:
            raise generation.error
        return generation.output()


BYTE_LEVEL = Model.of(byte_level())
BYTE_FALLBACK = Model.of(with_byte_fallback())
FEWER_IDS = Model.of(BYTE_LEVEL.tokenizer, vocab_size=300)
MODELS = st.sampled_from([BYTE_LEVEL, BYTE_FALLBACK])
SEEDS = st.integers(0, 2**32 - 1)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
CHOICES = st.lists(
    TEXTS | st.sampled_from(["</s>", 'a"b\\n', "a", "ab", "abc", " ", "\n", "\x01", "{}", "//#"]),
    min_size=1,
    max_size=6,
)


@given(MODELS, CHOICES, SEEDS)
def test_a_choice_is_made(model: Model, choices: list[str], seed: int) -> None:
    output = model.run(model.compile(choice=choices), seed)
    assert output.finish_reason == "stop"
    assert output.stop_reason is None
    assert spelt(model, output) in choices


def spelt(model: Model, output: CompletionOutput) -> str:
    """The output's text, put together from its tokens."""
    ids = [token for token in output.token_ids if token != EOS]
    text = b"".join(token_bytes(model.tokenizer)[token] for token in ids).decode("utf-8")
    # Decoders of SentencePiece's models drop a space at the beginning.
    assert output.text == (text if model is BYTE_LEVEL else text.removeprefix(" "))
    return text


def token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each token that is not special stands for."""
    found = {}
    alphabet = byte_alphabet()
    for surface, token in tokenizer.backend.get_vocab().items():
        if token in tokenizer.special_ids:
            continue
        if tokenizer.decoder_kinds == ("ByteLevel",):
            found[token] = bytes(alphabet[character] for character in surface)
        elif re.fullmatch("<0x..>", surface):
            found[token] = bytes([int(surface[3:5], 16)])
        else:
            found[token] = surface.replace("▁", " ").encode()
    return found


def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + number): byte for number, byte in enumerate(hidden)
    }


@st.composite
def languages(draw: Any, depth: int = 3) -> tuple[str, frozenset[str]]:
    """A regular expression and all the texts that it matches."""
    kind = draw(st.sampled_from(["text", "class", "or", "then", "repeat"])) if depth else "text"
    if kind == "text":
        text = draw(st.text("abé漢👋", min_size=1, max_size=3))
        return re.escape(text), frozenset([text])
    if kind == "class":
        return "[a-cx]", frozenset("abcx")
    first, texts = draw(languages(depth - 1))
    if kind == "repeat":
        low, more = draw(st.integers(0, 1)), draw(st.integers(0, 1))
        once = [frozenset([""]), texts, frozenset(a + b for a in texts for b in texts)]
        assume(len(texts) <= 20)
        return f"(?:{first}){{{low},{low + more}}}", frozenset().union(*once[low : low + more + 1])
    second, others = draw(languages(depth - 1))
    if kind == "or":
        return f"(?:{first}|{second})", texts | others
    assume(len(texts) * len(others) <= 200)
    return first + second, frozenset(a + b for a in texts for b in others)


@given(MODELS, languages(), SEEDS)
def test_masks_are_those_of_brute_force(
    model: Model, language: tuple[str, frozenset[str]], seed: int
) -> None:
    pattern, texts = language
    assume(texts != {""})
    encoded = {text.encode() for text in texts}
    tokens = token_bytes(model.tokenizer)
    state = model.compile(regex=pattern).start()
    rng = np.random.default_rng(seed)
    so_far = b""
    while True:
        rest = {text[len(so_far) :] for text in encoded if text.startswith(so_far)}
        expected = {token for token, piece in tokens.items() if _begins(piece, rest)}
        assert state.finished == (not expected)
        if so_far in encoded:
            expected.add(EOS)
        assert state.mask().shape == (model.vocab_size,)
        assert state.allowed().tolist() == sorted(expected)
        token = int(rng.choice(state.allowed()))
        state.advance(token)
        if token == EOS:
            break
        so_far += tokens[token]
    assert so_far in encoded
    assert state.finished


def _begins(piece: bytes, texts: set[bytes]) -> bool:
    return any(text.startswith(piece) for text in texts)


@given(MODELS, languages(), SEEDS)
def test_the_text_matches_the_regex(
    model: Model, language: tuple[str, frozenset[str]], seed: int
) -> None:
    pattern, texts = language
    output = model.run(model.compile(regex=pattern), seed)
    text = spelt(model, output)
    assert re.fullmatch(pattern, text)
    assert text in texts


SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
              st.integers(-50, 50), st.integers(0, 500)),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
              st.integers(0, 3), st.integers(0, 4)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.integers(-9, 9) | TEXTS | st.none(), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"const": {"a": [1, "é"]}}, {"type": "string", "pattern": "^[ab]{2}c?$"}]),
)  # fmt: skip


def _object(properties: dict[str, Any], optional: set[str]) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            _object,
            st.dictionaries(TEXTS, inner, min_size=1, max_size=3),
            st.sets(TEXTS, max_size=2),
        ),
        st.builds(
            lambda items, least: {
                "type": "array",
                "items": items,
                "minItems": least,
                "maxItems": least + 2,
            },
            inner,
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}),
    ),
    max_leaves=5,
)


TYPES = {
    "integer": int,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether the value has the form; of JSON Schema, what SCHEMAS uses."""
    if "anyOf" in schema:
        return any(valid(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    if "const" in schema:
        return bool(value == schema["const"])
    if TYPES[schema["type"]] is not type(value):
        return False
    match value:
        case bool() | None:
            return True
        case int():
            return bool(schema["minimum"] <= value <= schema["maximum"])
        case str() if "pattern" in schema:
            return bool(re.search(schema["pattern"], value))
        case str():
            return bool(schema["minLength"] <= len(value) <= schema["maxLength"])
        case list():
            fits = schema["minItems"] <= len(value) <= schema["maxItems"]
            return fits and all(valid(each, schema["items"]) for each in value)
    known = schema["properties"]
    return set(schema["required"]) <= set(value) <= set(known) and all(
        valid(each, known[name]) for name, each in value.items()
    )


@settings(max_examples=150)
@given(SCHEMAS, SEEDS)
def test_json_has_the_schemas_form(schema: dict[str, Any], seed: int) -> None:
    grammar = BYTE_LEVEL.compile(json=schema, disable_any_whitespace=True)
    output = BYTE_LEVEL.run(grammar, seed, max_tokens=700)
    assert output.finish_reason == "stop"
    assert valid(json.loads(output.text), schema)


@given(SEEDS)
def test_any_json_object(seed: int) -> None:
    """Random logits seldom close what they open: here every closing token is likely."""
    closing = {token: 7.0 for token in range(BYTE_LEVEL.tokenizer.vocab_size)
               if set(BYTE_LEVEL.tokenizer.decode([token])) & set('"}]')}  # fmt: skip
    output = BYTE_LEVEL.run(BYTE_LEVEL.compile(json_object=True), seed, logit_bias=closing)
    assume(output.finish_reason == "stop")
    assert isinstance(json.loads(output.text), dict)


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_special_tokens_are_not_text() -> None:
    """A special token's spelling in a form is written with the tokens of its characters."""
    state = BYTE_LEVEL.compile(choice=["<|end|>"]).start()
    assert END not in state.allowed()
    output = BYTE_LEVEL.run(BYTE_LEVEL.compile(choice=["<|end|>"]), 1)
    assert END not in output.token_ids
    assert output.text == "<|end|>"


def test_ids_of_only_the_model_or_only_the_tokenizer() -> None:
    tokenizer = BYTE_LEVEL.tokenizer
    any_token = {"grammar": "start: <[*]>"}
    larger = BYTE_LEVEL.compile(**any_token).start().mask()
    assert larger.size == tokenizer.vocab_size + EXTRA
    assert not larger[tokenizer.vocab_size :].any()
    smaller = GrammarCompiler(tokenizer, FEWER_IDS.vocab_size, (EOS, 305)).compile(
        StructuredOutputsParams(**any_token)
    )
    assert smaller.start().mask().shape == (FEWER_IDS.vocab_size,)


@given(SEEDS)
def test_a_model_with_fewer_ids_than_its_tokenizer(seed: int) -> None:
    output = FEWER_IDS.run(FEWER_IDS.compile(choice=["yes", "no"]), seed)
    assert output.text in ("yes", "no")


def test_several_eos_and_none() -> None:
    both = Model.of(BYTE_LEVEL.tokenizer, (EOS, END))
    state = both.compile(regex="ab?").start()
    assert not {EOS, END} & set(state.allowed().tolist())
    (a,) = both.tokenizer.encode("a", add_special_tokens=False)
    state.advance(a)
    assert {EOS, END} < set(state.allowed().tolist())
    state.advance(END)
    assert state.finished
    none = Model.of(BYTE_LEVEL.tokenizer, ())
    output = none.run(none.compile(choice=["yes", "no"]), 3, eos=())
    assert output.text in ("yes", "no")
    assert output.finish_reason == "stop"


def test_an_output_ends_with_its_last_token() -> None:
    """Without a step more that could only give EOS."""
    output = BYTE_LEVEL.run(BYTE_LEVEL.compile(choice=["yes"]), 5)
    assert output.finish_reason == "stop"
    assert EOS not in output.token_ids


@given(SEEDS)
def test_beside_other_parameters(seed: int) -> None:
    digits = BYTE_LEVEL.compile(regex="[0-9]{2,40}")
    ids = {digit: BYTE_LEVEL.tokenizer.encode(digit, False)[0] for digit in "0123456789"}
    output = BYTE_LEVEL.run(digits, seed, ignore_eos=True)
    assert len(output.text) == 40
    output = BYTE_LEVEL.run(digits, seed, allowed_token_ids=[ids["3"], ids["7"]])
    assert re.fullmatch("[37]{40}", output.text)
    output = BYTE_LEVEL.run(digits, seed, logit_bias={ids["5"]: 200.0}, stop=["55"])
    assert (output.text, output.stop_reason) == ("", "55")
    output = BYTE_LEVEL.run(digits, seed, max_tokens=3)
    assert output.finish_reason in ("length", "stop")
    for order in ("vllm", "hf"):
        output = BYTE_LEVEL.run(
            digits,
            seed,
            processor_order=order,
            repetition_penalty=1.2,
            presence_penalty=1.0,
            top_k=5,
            bad_words=["12"],
        )
        assert re.fullmatch("[0-9]{2,40}", output.text)


@given(SEEDS)
def test_min_tokens_hold_the_end_back(seed: int) -> None:
    output = BYTE_LEVEL.run(BYTE_LEVEL.compile(regex="(ab){1,30}"), seed, min_tokens=20)
    assert len(output.token_ids) >= 20 or output.text == "ab" * 30


def test_what_leaves_no_token_is_an_error_of_the_request() -> None:
    (b,) = BYTE_LEVEL.tokenizer.encode("b", add_special_tokens=False)
    grammar = BYTE_LEVEL.compile(choice=["a"])
    with pytest.raises(RequestError, match=r"no token can be chosen .*structured_outputs"):
        BYTE_LEVEL.run(grammar, 1, allowed_token_ids=[b])
    with pytest.raises(RequestError, match=r"structured_outputs do not allow the token \d+"):
        BYTE_LEVEL.run(grammar, 1, logits_processors=[lambda ids, row: np.maximum(row, 9.0)])


def test_a_state_and_its_copies_go_their_own_ways() -> None:
    grammar = BYTE_LEVEL.compile(choice=["aX", "bY"])
    ids = {each: BYTE_LEVEL.tokenizer.encode(each, False)[0] for each in "abXY"}
    first = grammar.start()
    second = first.advanced(ids["a"])
    third = first.copy()
    third.advance(ids["b"])
    assert first.allowed().tolist() == grammar.start().allowed().tolist()
    assert second.allowed().tolist() == [ids["X"]]
    assert third.allowed().tolist() == [ids["Y"]]
    with pytest.raises(RequestError, match="do not allow"):
        second.advance(ids["Y"])
    assert second.advanced(ids["X"]).finished
    assert not second.finished


def test_equal_forms_are_compiled_once() -> None:
    again = json.loads(json.dumps(OBJECT))
    assert BYTE_LEVEL.compile(json=OBJECT) is BYTE_LEVEL.compile(json=again)
    compact = BYTE_LEVEL.compile(json=OBJECT, disable_any_whitespace=True)
    assert compact is not BYTE_LEVEL.compile(json=OBJECT)


def test_schemas_are_not_changed() -> None:
    schema = json.loads(json.dumps(OBJECT))
    BYTE_LEVEL.compile(json=schema, disable_any_whitespace=True, disable_additional_properties=True)
    assert schema == OBJECT
