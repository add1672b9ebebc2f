"""A worker: what the steps of beam searches take, in the engine, in cache copies, and around both.

Reads {"model", "threads", "prompt_tokens", "output_tokens", "searches"}, where searches are fields
of BeamSearchParams by name; prints {"searches": [...]}, of each what Recorder.summary returns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime import LLM, BeamSearchParams
from enginewright.runtime.engine import BlockCopy, Engine, StepBatch, StepLogits

TEXT = """The ferry left the harbour at seven in the morning, an hour after the fishing boats. On
deck stood a teacher with two heavy cases, a family on its way to a wedding, and an old man who had
made the crossing every week for thirty years. The sea was calm, and the coast behind them grew
smaller until only the white tower of the church could be seen. Nobody spoke much. The children
counted gulls, their mother read a letter for the third time, and the teacher tried to remember the
names of the islands: first the long one with the quarry, then the two small ones where sheep were
kept, and last the island with the school, which had closed in the winter when its roof came down.
A new one had been promised by the spring. It was now the middle of September, and the wood for it
lay under a cover beside the road, as it had since May. The old man knew all about it. He had seen
the first load come over, he said, and the carpenter go back on the same boat, because the nails
had been sent to another island. He laughed, sat down beside the cases and asked the teacher what
was in them. Books, said the teacher, and a bell. Then you will have to tell us where to hang it,
said the old man, and for the rest of the way they talked about"""


@dataclass
class Step:
    """One step of the engine and the copies that were carried out before it."""

    rows: int = 0
    ended: float = 0.0
    engine_s: float = 0.0
    copy_s: float = 0.0
    copies: list[int] = field(default_factory=list)
    """How many tokens each one moved."""


class Recorder:
    """Puts itself before an engine's steps and copies."""

    def __init__(self, engine: Engine) -> None:
        self.steps: list[Step] = []
        self._next = Step()
        self._step, self._copy_blocks = engine.step, engine.copy_blocks
        engine.step = self.step  # type: ignore[method-assign]
        engine.copy_blocks = self.copy_blocks  # type: ignore[method-assign]

    def step(self, batch: StepBatch) -> StepLogits:
        started = time.perf_counter()
        logits = self._step(batch)
        done, self._next = self._next, Step()
        done.rows, done.ended = len(batch.input_ids), time.perf_counter()
        done.engine_s = done.ended - started
        self.steps.append(done)
        return logits

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        started = time.perf_counter()
        self._copy_blocks(copies)
        self._next.copy_s += time.perf_counter() - started
        self._next.copies += [copy.end - copy.start for copy in copies]

    def summary(self, width: int, token_bytes: int) -> dict[str, Any]:
        """Sums over the steps of all beams but the first, before which the prompt was forked."""
        first, *others = [step for step in self.steps if step.rows == width]
        engine = sum(step.engine_s for step in others)
        copying = sum(step.copy_s for step in others)
        return {
            "steps": len(others),
            "engine_s": engine,
            "copy_s": copying,
            "host_s": others[-1].ended - first.ended - engine - copying,
            "copies": sum(len(step.copies) for step in others),
            "tokens": sum(sum(step.copies) for step in others),
            "token_bytes": token_bytes,
            "fork_s": first.copy_s,
            "fork_tokens": sum(first.copies),
        }


def main() -> None:
    work = json.load(sys.stdin)
    llm = LLM(work["model"], threads=work["threads"], generation_config="vllm")
    ids = llm.get_tokenizer().encode(TEXT)
    assert len(ids) > work["prompt_tokens"]
    ids = ids[: work["prompt_tokens"]]
    core = llm._core  # no public call shows the engine while a search runs
    assert core is not None
    recorder = Recorder(core._engine)
    said = []
    for search in work["searches"]:
        params = BeamSearchParams(**search, max_tokens=work["output_tokens"], ignore_eos=True)
        llm.beam_search([ids[::-1]], params)  # warms up
        llm.reset_prefix_cache()
        recorder.steps.clear()
        llm.beam_search([ids], params)
        said.append(recorder.summary(params.beam_width, llm.engine_info.kv_bytes_per_token))
    llm.close()
    print(json.dumps({"searches": said}))


main()
