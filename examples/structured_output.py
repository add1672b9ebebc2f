"""Outputs of a given form: a JSON schema, a regular expression, one of some texts.

Needs the extra: pip install 'enginewright[cpu,structured]'.
"""

from __future__ import annotations

import sys

from enginewright.runtime import LLM, SamplingParams, StructuredOutputsParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"type": "string", "maxLength": 20},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def ask(llm: LLM, question: str, form: StructuredOutputsParams) -> str:
    # Room enough to finish: an output that max_tokens cuts short is not of the form.
    params = SamplingParams(temperature=0, max_tokens=96, structured_outputs=form)
    (output,) = llm.chat([{"role": "user", "content": question}], params)
    return output.outputs[0].text


def main(model: str) -> None:
    with LLM(model) as llm:
        person = StructuredOutputsParams(json=PERSON, disable_any_whitespace=True)
        answer = ask(llm, "Alice is 30 and lives in Lisbon. Write this as JSON.", person)
        print("json:", answer)

        date = StructuredOutputsParams(regex=r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d")
        print("regex:", ask(llm, "When did people first walk on the moon?", date))

        either = StructuredOutputsParams(choice=["hot", "cold"])
        print("choice:", ask(llm, "Is the sun hot or cold?", either))


if __name__ == "__main__":
    main(*sys.argv[1:])
