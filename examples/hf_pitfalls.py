"""The four pitfalls of transformers' tutorial on generation, and what becomes of them here."""

from __future__ import annotations

import sys

from enginewright.runtime import LLM, SamplingParams


def length(llm: LLM) -> None:
    """Too short or too long: 16 tokens unless max_tokens is given. The prompt is not repeated."""
    prompt = "A sequence of numbers: 1, 2"
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=0, max_tokens=50)):
        (output,) = llm.generate(prompt, params)
        completion = output.outputs[0]
        print(f"length: {len(completion.token_ids)} tokens, {completion.text!r}")


def mode(llm: LLM) -> None:
    """Greedy or sampled: temperature says which. A seed makes a request repeatable."""
    greedy = SamplingParams(temperature=0, max_tokens=20)
    sampled = SamplingParams(temperature=1, top_k=50, seed=0, max_tokens=20)
    for name, params in (("greedy", greedy), ("sampled", sampled), ("again", sampled)):
        print(f"mode {name}: {llm.generate('I am a cat.', params)[0].outputs[0].text!r}")


def padding(llm: LLM) -> None:
    """The wrong side: nothing is padded, so prompts of any lengths run together unchanged."""
    prompts = ["1, 2, 3", "A, B, C, D, E", "The days of the week are Monday, Tuesday,"]
    params = SamplingParams(temperature=0, max_tokens=12)
    together = [output.outputs[0].text for output in llm.generate(prompts, params)]
    alone = [llm.generate(prompt, params)[0].outputs[0].text for prompt in prompts]
    print(f"padding: together {together}")
    print(f"padding: alone    {alone}")


def prompt_format(llm: LLM) -> None:
    """The wrong prompt: chat() writes the format that the model was tuned to."""
    question = "Name the capital city of France."
    params = SamplingParams(temperature=0, max_tokens=24)
    (plain,) = llm.generate(question, params)  # logs a warning: it has none of the format's marks
    (chat,) = llm.chat([{"role": "user", "content": question}], params)
    print(f"format plain: {plain.outputs[0].text!r}")
    print(f"format chat: {chat.outputs[0].text!r}")


def main(model: str) -> None:
    with LLM(model) as llm:
        for pitfall in (length, mode, padding, prompt_format):
            pitfall(llm)


if __name__ == "__main__":
    main(*sys.argv[1:])
