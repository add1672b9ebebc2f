"""Change the logits by a function of one's own: no token may come twice."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime import LLM, SamplingParams


def never_twice(token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """``token_ids``: those generated so far; ``logits`` [V] is a copy, free to be changed."""
    logits[token_ids] = -np.inf
    return logits


def main(model: str) -> None:
    with LLM(model) as llm:
        for processors in (None, [never_twice]):
            params = SamplingParams(temperature=0, max_tokens=20, logits_processors=processors)
            print(repr(llm.generate("I am a cat.", params)[0].outputs[0].text))


if __name__ == "__main__":
    main(*sys.argv[1:])
