"""A worker: what each kind of operator takes of a decode step, by ONNX Runtime's own profiler.

Reads {"model", "threads", "plan", "rows", "context", "steps"}; prints {"plan", "step_s": the median
step while nothing was profiled, "operators": {type: [nodes, median seconds of a step]}}. Keys and
values of the past are zeros: what they are changes no time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from enginewright.runtime import LLM
from enginewright.runtime.engine import Engine, StepBatch

WARM = 3


def main() -> None:
    work = json.load(sys.stdin)
    plain, _ = steps(work, None)
    with tempfile.TemporaryDirectory() as folder:
        taken, plan = steps(work, Path(folder))
        (profile,) = Path(folder).iterdir()
        operators = by_operator(json.loads(profile.read_text()), len(taken))
    print(json.dumps({"plan": plan, "step_s": statistics.median(plain), "operators": operators}))


def steps(work: dict[str, Any], profile: Path | None) -> tuple[list[float], str]:
    """Seconds of each decode step, and the plan that ran; ``profile``: a folder to profile into."""
    if profile is not None:
        profile_sessions(profile)
    llm = LLM(work["model"], threads=work["threads"], plan=work["plan"])
    engine: Any = llm._core._engine  # type: ignore[union-attr]  # no public call makes one step
    batch, taken = decode_batch(engine, work["rows"], work["context"]), []
    for _ in range(WARM + work["steps"]):
        started = time.perf_counter()
        engine.step(batch)
        taken.append(time.perf_counter() - started)
    if profile is not None:
        engine._session.end_profiling()
    plan = llm.plan or ""
    llm.close()
    return (taken if profile else taken[WARM:]), plan


def profile_sessions(folder: Path) -> None:
    """Let every session from now on write what it runs into the folder."""
    import onnxruntime

    options = onnxruntime.SessionOptions

    def profiled() -> Any:
        made = options()
        made.enable_profiling = True
        made.profile_file_prefix = str(folder / "profile")
        return made

    onnxruntime.SessionOptions = profiled


def decode_batch(engine: Engine, rows: int, context: int) -> StepBatch:
    """One token more for each row, in a cache that has room for them."""
    info = engine.describe()
    size = info.kv_block_size or context + 1
    of_row = -(-(context + 1) // size)
    engine.resize(rows * of_row, size)
    return StepBatch(
        input_ids=np.full((rows, 1), 1, np.int64),
        new_lengths=np.ones(rows, np.int32),
        past_lengths=np.full(rows, context, np.int32),
        block_table=np.arange(rows * of_row, dtype=np.int32).reshape(rows, of_row),
        logits_index=np.arange(rows),
    )


def by_operator(events: list[dict[str, Any]], steps: int) -> dict[str, tuple[int, float]]:
    """Nodes of each type, and the median over the steps of the seconds that they take together."""
    ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    of_step, rest = divmod(len(ran), steps)
    assert rest == 0, "every step runs the same nodes"
    nodes = Counter(event["args"]["op_name"] for event in ran[:of_step])
    spent = {name: [0.0] * steps for name in nodes}
    for at, event in enumerate(ran):
        spent[event["args"]["op_name"]][at // of_step] += event["dur"] / 1e6
    return {
        name: (count, statistics.median(spent[name][WARM:])) for name, count in nodes.most_common()
    }


if __name__ == "__main__":
    main()
