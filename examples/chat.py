"""Answer conversations; the model's own chat template writes the prompts."""

from __future__ import annotations

import sys

from enginewright.runtime import LLM, SamplingParams

CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "Write an essay about the importance of higher education."},
]
QUESTION = [{"role": "user", "content": "Name the capital city of France."}]


def main(model: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=48)
    with LLM(model) as llm:
        for output in llm.chat([CONVERSATION, QUESTION], params):
            print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")

        # Put words into the model's mouth: go on with the last message.
        begun = [*QUESTION, {"role": "assistant", "content": "Of course. It is"}]
        (output,) = llm.chat(
            begun, params, add_generation_prompt=False, continue_final_message=True
        )
        print(f"Continued: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
