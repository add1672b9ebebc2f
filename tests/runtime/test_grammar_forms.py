"""Structured outputs: what each kind of form lets through, and forms that are refused by name."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from enginewright.runtime import (
    MissingDependencyError,
    RequestError,
    SamplingParamsError,
    StructuredOutputsParams,
)
from enginewright.runtime.sampling.grammar import Grammar, GrammarCompiler
from enginewright.runtime.text.tokenizer import Tokenizer

EOS = 256


def byte_level() -> Tokenizer:
    """A token for each byte, EOS, and one more special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<|call|>"])
    return Tokenizer(backend)


TOKENIZER = byte_level()
COMPILER = GrammarCompiler(TOKENIZER, EOS + 2, (EOS,))
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def compiled(**form: Any) -> Grammar:
    return COMPILER.compile(StructuredOutputsParams(**form))


def written(grammar: Grammar, longest: int = 900) -> str:
    """A text that the grammar allows, to its end; of ``longest`` tokens at most."""
    state, rng = grammar.start(), np.random.default_rng(1)
    tokens: list[int] = []
    while not state.finished and len(tokens) < longest:
        allowed = state.allowed()
        tokens.append(int(rng.choice(allowed[allowed != EOS])))
        state.advance(tokens[-1])
    return TOKENIZER.decode(tokens)


def accepts(text: str, **form: Any) -> bool:
    """Whether an output may be this text."""
    state = compiled(**form).start()
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if token not in state.allowed():
            return False
        state.advance(token)
    return bool(EOS in state.allowed())


@pytest.mark.parametrize(
    ("pattern", "text", "allowed"),
    [
        (r"^\d\d$", "12", True),
        (r"\d", "٣", False),
        (r"[\d.]{3}", "1.2", True),
        (r"\D", "é", True),
        (".", "é", True),
        (".", "\n", False),
        ("(?s:.)", "\n", True),
        ("(?i:ab)", "aB", True),
        ("a/b|\\/", "a/b", True),
        ("a/b|\\/", "/", True),
        ("ab", "abc", False),
        ("ab", "a", False),
        (" ", " ", True),
    ],
)
def test_regular_expressions(pattern: str, text: str, allowed: bool) -> None:
    assert accepts(text, regex=pattern) == allowed
    assert bool(re.fullmatch(pattern, text)) == allowed or pattern == r"\d"


def test_spaces_in_json() -> None:
    assert accepts('{"a":1}', json=OBJECT)
    assert accepts('{ "a":\n\n1 }', json=OBJECT)
    compact = {"json": OBJECT, "disable_any_whitespace": True}
    assert accepts('{"a":1}', **compact)
    assert not accepts('{"a": 1}', **compact)
    single = {"json": OBJECT, "whitespace_pattern": " "}
    assert accepts('{ "a": 1}', **single)
    assert not accepts('{"a":  1}', **single)
    assert not accepts('{"a": {}}', json_object=True, disable_any_whitespace=True)
    assert accepts('{"a":{}}', json_object=True, disable_any_whitespace=True)


def test_formats_of_others_are_remarks() -> None:
    path = {"type": "object", "properties": {"a": {"type": "string", "format": "path"}}}
    assert accepts('{"a": "/tmp"}', json=path)
    date = {"type": "object", "properties": {"format": {"type": "string", "format": "date"}}}
    assert not accepts('{"format": "/tmp"}', json=date)
    with pytest.raises(SamplingParamsError, match="uri-template"):
        accepts('"a"', json={"type": "string", "format": "uri-template"})


def test_further_properties() -> None:
    assert accepts('{"a": 1, "b": 2}', json=OBJECT)
    closed = {"disable_additional_properties": True}
    assert not accepts('{"a": 1, "b": 2}', json=OBJECT, **closed)
    assert accepts('{"a": 1, "b": 2}', json={**OBJECT, "additionalProperties": True}, **closed)
    nested = {"type": "array", "items": {"anyOf": [OBJECT, {"enum": [{"properties": {}}]}]}}
    assert accepts('[{"a": 1, "b": 2}]', json=nested)
    assert not accepts('[{"a": 1, "b": 2}]', json=nested, **closed)
    assert accepts('[{"properties": {}}]', json=nested, **closed)
    text = json.dumps({"$ref": "#/$defs/o", "$defs": {"o": OBJECT}})
    assert not accepts('{"a": 1, "b": 2}', json=text, **closed)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "(" root ")" | digit+\ndigit ::= [0-9]',
        'start: "(" start ")" | DIGIT+\nDIGIT: /[0-9]/',
    ],
    ids=["GBNF", "Lark"],
)
def test_grammars_in_both_notations(grammar: str) -> None:
    assert accepts("((12))", grammar=grammar)
    assert not accepts("((12)", grammar=grammar)
    assert not accepts("()", grammar=grammar)


TAG = {
    "structures": [
        {"begin": "<fn=get>", "schema": OBJECT, "end": "</fn>"},
        {"begin": "<fn=put>", "schema": {"type": "boolean"}, "end": ""},
        {"begin": "<|call|>now", "schema": OBJECT, "end": "."},
    ],
    "triggers": ["<fn", "<|call|>"],
}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("no tag at all, < is free", True),
        ('first <fn=get>{"a": 1}</fn> then <fn=put>true and on', True),
        ('<fn=get>{"a": 1}', False),
        ('<fn=get>{"b": 1}</fn>', False),
        ("<fn=del>", False),
        ('<|call|>now{"a":1}. good', True),
        ("<|call|>then", False),
    ],
)
def test_structural_tags(text: str, allowed: bool) -> None:
    assert accepts(text, structural_tag=json.dumps(TAG)) == allowed


def chain(links: int, **link: Any) -> dict[str, Any]:
    """A schema whose definitions refer to each other, one after the other."""
    definitions = {f"d{i}": {**link, "$ref": f"#/$defs/d{i + 1}"} for i in range(links)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{links}": {"type": "null"}}}


def nested(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "banana"}}, "json=.*Invalid type: banana"),
    ({"json": {"enum": []}}, "json=.*Unsatisfiable"),
    ({"json": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "json=.*Unsatisfiable"),
    ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "json=.*Unsatisfiable"),
    ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "json=.*no text"),
    ({"json": {"$ref": "https://example.com/a.json"}}, "json=.*does not fetch"),
    ({"json": {"not": {"type": "string"}}}, "json=.*Unimplemented keys"),
    ({"json": {"type": "array", "uniqueItems": True}}, "json=.*Unimplemented keys"),
    ({"json": {"type": "string", "pattern": "(?=a)"}}, "json=.*look-around"),
    ({"json": {"type": "integer", "multipleOf": 10_000_019}}, "json=.*multipleOf"),
    ({"json": {"allOf": [{"multipleOf": m} for m in (101, 103, 107)]}}, "json=.*multipleOf"),
    ({"json": chain(20_000)}, r"json=.*objects and lists"),
    ({"json": chain(3_000)}, r"json=.*\$ref"),
    ({"json": nested(200)}, "json=.*levels deep"),
    ({"json": {"properties": {f"p{i}": {} for i in range(6000)}}}, "json=.*objects and lists"),
    ({"regex": "("}, "regex=.*unclosed group"),
    ({"regex": r"(a)\1"}, "regex=.*backreferences"),
    ({"regex": "a(?!b)"}, "regex=.*look-around"),
    ({"regex": r"[^\s\S]"}, "regex=.*no text"),
    ({"regex": "(" * 5000 + "a" + ")" * 5000}, "regex=.*invalid regex"),
    ({"choice": [str(number) for number in range(100_000)]}, "choice=.*characters"),
    ({"grammar": "start: other"}, 'grammar=.*unknown name: "other"'),
    ({"grammar": "start: start start"}, "grammar=.*no text"),
    ({"grammar": "start: ["}, "grammar=.*"),
    ({"grammar": "root ::= other"}, "grammar=.*not GBNF .*other"),
    ({"grammar": "root ::= " + "(" * 2000 + '"a"' + ")" * 2000}, "grammar=.*not GBNF .*recursion"),
    ({"grammar": "start: " + "(" * 2000 + '"a"' + ")" * 2000}, "grammar=.*too deeply nested"),
    (
        {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000))},
        "grammar=.*lines",
    ),
    ({"grammar": 'start: %json {"multipleOf": 10000019}'}, "grammar=.*multipleOf"),
    ({"grammar": "start: %json " + '[{"a":' * 900}, "grammar="),
    ({"grammar": "start: <|nothing|>"}, "grammar=.*unknown special token"),
    ({"structural_tag": "{"}, "structural_tag=.*not JSON"),
    ({"structural_tag": '{"format": {"type": "any_text"}}'}, "structural_tag=.*not supported"),
    ({"structural_tag": json.dumps({**TAG, "triggers": ["<fn"]})}, "structural_tag=.*no trigger"),
    ({"structural_tag": json.dumps({**TAG, "structures": []})}, "structural_tag=.*not empty"),
    ({"structural_tag": '{"structures": [{}], "triggers": ["a"]}'}, "structural_tag=.*no begin"),
    (
        {"structural_tag": '{"structures": [{"begin": "a", "schema": {}}], "triggers": ["a"]}'},
        "structural_tag=.*no end",
    ),
    (
        {"structural_tag": '{"structures": [{"begin": "a", "end": ""}], "triggers": ["a"]}'},
        "structural_tag=.*no schema",
    ),
    ({"structural_tag": '{"structures": [{"begin": "a"}], "triggers": "a"}'}, ".*triggers must be"),
    ({"choice": ["\ud800"]}, "choice=.*"),
    ({"json": '{"const": "\ud800"}'}, "json=.*"),
    ({"json_object": True, "whitespace_pattern": "["}, r"whitespace_pattern='\['.*unclosed"),
]


@pytest.mark.parametrize(("form", "said"), REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
def test_what_cannot_be_followed_is_refused_by_name(form: dict[str, Any], said: str) -> None:
    with pytest.raises(SamplingParamsError, match=f"(?s)structured_outputs.{said}") as caught:
        compiled(**form)
    assert len(str(caught.value)) < 1200
    assert "\n" not in str(caught.value)


def test_long_chains_that_are_let_through_are_safe() -> None:
    """The library recurses over them; what is refused above would overflow its stack."""
    rules = "".join(f"r{i}: r{i + 1}\n" for i in range(1990))
    assert written(compiled(grammar=f'start: r0\n{rules}r1990: "a"')) == "a"
    terminals = rules.replace("r", "R")
    grammar = compiled(grammar=f'start: R0\n{terminals}R1990: "a"')
    assert written(grammar) == "a"
    assert written(compiled(json=chain(1000))) == "null"


@pytest.mark.parametrize("pattern", [r"(\w+\s?){1,5000}x", "(.{1,1000}){1,1000}"])
def test_a_regex_that_explodes_ends_its_request(pattern: str) -> None:
    """At once, or when an output comes to where it does: which depends on the vocabulary."""
    with pytest.raises(RequestError, match=r"cannot be followed.*: .*too many expressions"):
        written(compiled(regex=pattern))


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    compiler = GrammarCompiler(TOKENIZER, EOS + 2, (EOS,))
    with pytest.raises(MissingDependencyError, match=r"pip install 'enginewright\[structured\]'"):
        compiler.compile(StructuredOutputsParams(regex="a"))


def test_a_tokenizer_that_the_library_cannot_read() -> None:
    backend = Backend(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    compiler = GrammarCompiler(Tokenizer(backend), 2, (1,))
    with pytest.raises(SamplingParamsError, match="cannot read this model's tokenizer"):
        compiler.compile(StructuredOutputsParams(regex="a"))
