"""Where the sampling parameters of a call come from that gives none."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from enginewright.runtime import LLM, Explanation, SamplingParams


def changed(explanation: Explanation) -> str:
    """What something has set. Printing the explanation itself shows every parameter."""
    rows = [each for each in explanation if each.origin != "default"]
    return "\n".join(f"    {each.name} = {each.value!r}: {each.origin}" for each in rows)


def show(model: str, **options: Any) -> None:
    with LLM(model, **options) as llm:
        print(f"{options}\n{changed(llm.explain())}")


def main(model: str) -> None:
    show(model)  # generation_config="auto": what the model's own files say
    show(model, generation_config="vllm")  # neutral, whatever the model says
    show(model, override_generation_config={"temperature": 0.6, "max_new_tokens": 64})
    with tempfile.TemporaryDirectory() as folder:
        config = {"temperature": 0.2, "top_p": 0.9, "do_sample": True}
        Path(folder, "generation_config.json").write_text(json.dumps(config), "utf-8")
        with LLM(model, generation_config=folder) as llm:
            print(f"a folder's\n{changed(llm.explain())}")
            # Parameters that are given are given as a whole: the defaults do not fill gaps.
            print(f"given\n{changed(llm.explain(SamplingParams(top_k=40)))}")
            print(llm.get_default_sampling_params().temperature)


if __name__ == "__main__":
    main(*sys.argv[1:])
