"""The formats of tool calls by name, and which one an artifact has.

The names are vLLM's, of ``--tool-call-parser``. The automatic choice looks at the chat template
alone: it shows the model how a call is written, and the first row of ``_SEEN_IN`` all of whose
texts are in it is taken. A template with none of them has no parser, and a request with tools can
then be served by ``tool_choice`` "none", "required" or a named function only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from enginewright.runtime.errors import RequestError
from enginewright.server.tools.json_calls import Granite, Hermes, Llama3, Mistral, Phi4Mini
from enginewright.server.tools.marked import MarkedParser
from enginewright.server.tools.parser import ToolParser
from enginewright.server.tools.pythonic import Pythonic
from enginewright.server.tools.xml_calls import Qwen3Coder

TOOL_FORMATS: Mapping[str, type[MarkedParser]] = {
    "granite": Granite,
    "hermes": Hermes,
    "llama3_json": Llama3,
    "llama4_pythonic": Pythonic,
    "mistral": Mistral,
    "phi4_mini_json": Phi4Mini,
    "pythonic": Pythonic,
    "qwen": Hermes,
    "qwen3": Hermes,
    "qwen3_coder": Qwen3Coder,
    "qwen3_xml": Qwen3Coder,
}

_SEEN_IN: Sequence[tuple[tuple[str, ...], str]] = (
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("[TOOL_CALLS]",), "mistral"),
    (("functools[",), "phi4_mini_json"),
    (("<|/tool_call|>",), "phi4_mini_json"),
    (("<|tool_call|>",), "granite"),
    (("<tool_call>",), "hermes"),
    (("<|python_start|>",), "llama4_pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (('"parameters": dictionary of argument name',), "llama3_json"),
)


def make_tool_parser(name: str, tools: Sequence[Mapping[str, Any]] = ()) -> ToolParser:
    """The parser for one output; ``tools``: those of the request, as the API has them."""
    form = _format(name)
    return form(tools) if issubclass(form, Qwen3Coder) else form()


def choose_tool_parser(template: str | None) -> str | None:
    """The name that fits an artifact's chat template; None where it shows no known format."""
    shown = template or ""
    return next((name for texts, name in _SEEN_IN if all(text in shown for text in texts)), None)


def tools_need_special_tokens(name: str, special_tokens: Collection[str]) -> bool:
    """Whether the output must be detokenized with ``skip_special_tokens=False``.

    So it is where a marker of the format is a special token of the model's tokenizer, as
    ``[TOOL_CALLS]`` of Mistral and ``<|python_tag|>`` of Llama are; ``<tool_call>`` of Qwen3 is an
    added token, but no special one.
    """
    return not set(_format(name).markers).isdisjoint(special_tokens)


def _format(name: str) -> type[MarkedParser]:
    if name not in TOOL_FORMATS:
        legal = ", ".join(TOOL_FORMATS)
        raise RequestError(f"tool_call_parser={name!r:.80} is not legal: there are {legal}")
    return TOOL_FORMATS[name]
