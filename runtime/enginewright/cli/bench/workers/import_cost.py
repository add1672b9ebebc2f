"""A worker: what ``import enginewright.runtime`` and its LLM cost, and which modules came along."""

from __future__ import annotations

import importlib
import json
import sys
import time


def main() -> None:
    json.load(sys.stdin)
    before = time.process_time()
    runtime = importlib.import_module("enginewright.runtime")
    package = time.process_time() - before
    runtime.LLM  # noqa: B018 - the name is imported on first use
    everything = time.process_time() - before
    heavy = {"torch", "transformers", "onnx"} & sys.modules.keys()
    print(json.dumps({"import_s": package, "llm_s": everything, "heavy": sorted(heavy)}))


main()
