"""Chat by another template than the model's: from a file, as text, or a built-in one."""

from __future__ import annotations

import sys
from pathlib import Path

from enginewright.runtime import LLM, SamplingParams, load_chat_template

FILE = Path(__file__).with_name("questions.jinja")
LITERAL = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}bot:"
CONVERSATION = [
    {"role": "system", "content": "Answer the questions."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And the capital of Portugal?"},
]


def main(model: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=16, stop="\n")
    templates = {
        "file": load_chat_template(FILE),
        "literal": load_chat_template(LITERAL),
        "built-in": load_chat_template("chatml"),
    }
    with LLM(model) as llm:
        for source, template in templates.items():
            (output,) = llm.chat(CONVERSATION, params, chat_template=template)
            print(f"By {source}: {output.prompt!r} -> {output.outputs[0].text!r}")

    # For every conversation of an LLM; paths and names need no load_chat_template.
    with LLM(model, chat_template=FILE) as llm:
        (output,) = llm.chat(CONVERSATION, params)
        print(f"By LLM: {output.prompt!r} -> {output.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
