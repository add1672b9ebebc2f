"""How models mark their thoughts: the table of names, and which one an artifact has.

The names are those of `--reasoning-parser`. The automatic choice looks at the chat template
alone: the first row of `_SEEN_IN` whose marker is in the template is taken, else there is no
parser. Whether an output begins with thoughts is then seen from each prompt (many templates open
them, or open and close them where thinking is turned off) and from the output itself.
"""

from __future__ import annotations

from collections.abc import Collection

from enginewright.runtime.errors import RequestError
from enginewright.server.reasoning.parser import ReasoningFormat, ReasoningParser

_THINK = ReasoningFormat(("<think>",), ("</think>",))
_MISTRAL = ReasoningFormat(("[THINK]",), ("[/THINK]",))
_GRANITE = ReasoningFormat(
    ("Here is my thought process:", "Here's my thought process:"),
    ("Here is my response:", "Here's my response:"),
)

REASONING_FORMATS = {
    "deepseek_r1": ReasoningFormat(_THINK.begins, _THINK.ends, always=True),
    "granite": _GRANITE,
    "mistral": _MISTRAL,
    "olmo3": _THINK,
    "qwen3": _THINK,
    "smollm3": _THINK,
    "think": _THINK,
}

_SEEN_IN = (
    ("[THINK]", "mistral"),
    ("</think>", "qwen3"),
    ("<think>", "qwen3"),
    ("Here is my thought process:", "granite"),
)


def make_reasoning_parser(name: str, prompt: str = "") -> ReasoningParser:
    """The parser for one output; ``prompt`` is the rendered text that it continues."""
    return ReasoningParser(_format(name), prompt)


def choose_reasoning_parser(template: str | None) -> str | None:
    """The name that fits an artifact's chat template; None where it shows no thoughts."""
    return next((name for mark, name in _SEEN_IN if mark in (template or "")), None)


def reasoning_needs_special_tokens(name: str, special_tokens: Collection[str]) -> bool:
    """Whether the output must be detokenized with ``skip_special_tokens=False``."""
    return not set(_format(name).markers).isdisjoint(special_tokens)


def _format(name: str) -> ReasoningFormat:
    if name not in REASONING_FORMATS:
        legal = ", ".join(REASONING_FORMATS)
        raise RequestError(f"reasoning_parser={name!r:.80} is not legal: there are {legal}")
    return REASONING_FORMATS[name]
