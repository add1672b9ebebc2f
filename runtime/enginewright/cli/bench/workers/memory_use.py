"""A worker: the memory of this process at three moments.

Reads {"model", "threads", "weights", "tokens", "one", "many"}, prompts as token ids, weights as
names of files; prints {"loaded", "one", "many"}, of each {"peak", "anonymous", "mapped"} in bytes,
where mapped is what is resident of the weights' own files.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from enginewright.cli.bench.machine import memory
from enginewright.runtime import LLM, SamplingParams


def main() -> None:
    work = json.load(sys.stdin)
    llm = LLM(work["model"], threads=work["threads"], generation_config="vllm")
    params = SamplingParams(
        temperature=0, max_tokens=work["tokens"], ignore_eos=True, detokenize=False
    )

    def seen() -> dict[str, int]:
        return {**memory(os.getpid()), "mapped": mapped(work["weights"])}

    said = {"loaded": seen()}
    for stage in ("one", "many"):
        llm.generate(work[stage], params)
        said[stage] = seen()
    llm.close()
    print(json.dumps(said))


def mapped(names: list[str]) -> int:
    """Resident bytes of mappings of files with these names."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8", "replace").splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            counts = bool(rest) and Path(rest[-1]).name in names
        elif counts and first == "Rss:":
            total += int(rest[0]) * 1024
    return total


main()
