"""Search the likeliest continuations, by vLLM's rules and by those of transformers."""

from __future__ import annotations

import sys

from enginewright.runtime import LLM, BeamSearchParams

PROMPT = "Hello, my name is"


def main(model: str) -> None:
    with LLM(model) as llm:
        params = BeamSearchParams(beam_width=4, max_tokens=16)
        for output in llm.beam_search([{"prompt": PROMPT}], params):
            for beam in output.sequences:
                # As in vLLM, text and tokens begin with the prompt.
                print(f"vllm {beam.score:.4f} {beam.text!r} (new: {beam.generated_text!r})")

        # The ids and scores of transformers' generate(num_beams=4, early_stopping=True).
        params = BeamSearchParams(4, 16, algorithm="hf", early_stopping=True, length_penalty=0.5)
        (output,) = llm.beam_search([{"prompt": PROMPT}], params)
        for beam in output.sequences:
            print(f"hf {beam.score:.4f} {beam.generated_text!r}")

        # Older code has beams as outputs of generate(); it runs, with a DeprecationWarning.
        (request,) = llm.generate(PROMPT, BeamSearchParams(beam_width=4, max_tokens=16))
        for each in request.outputs:
            print(f"generate {each.index} {each.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
