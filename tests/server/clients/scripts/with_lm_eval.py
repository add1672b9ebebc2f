"""lm-evaluation-harness against the server at argv[1], its tokenizer there too.

argv[2] is a folder with tasks. Prints what it measured, and each choice's log likelihood.
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

import lm_eval
from lm_eval.tasks import TaskManager

found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": "tiny",
        "base_url": sys.argv[1] + "/v1/completions",
        "tokenizer_backend": "remote",
        "num_concurrent": 4,
        "max_retries": 1,
        "max_length": 512,
        "tokenized_requests": True,
    },
    tasks=["choices"],
    task_manager=TaskManager(include_path=sys.argv[2], include_defaults=False),
    bootstrap_iters=0,
)
samples = [[each[0][0] for each in sample["resps"]] for sample in found["samples"]["choices"]]
print("RESULT " + json.dumps({"acc": found["results"]["choices"]["acc,none"], "samples": samples}))
