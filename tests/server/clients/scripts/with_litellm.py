"""litellm against the server at argv[1]: answers, streams, demanded calls, errors by class."""

from __future__ import annotations

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

litellm.telemetry = False
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"x": {"enum": [1, 2]}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
}
USER = [{"role": "user", "content": "Call me Ishmael."}]


def ask(**fields: object) -> object:
    settings = {"api_base": sys.argv[1] + "/v1", "api_key": "any", "num_retries": 0}
    given = {"model": "openai/tiny", "messages": USER, "seed": 5, "max_tokens": 9}
    return litellm.completion(**{**given, **settings, **fields})


whole = ask()
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True))
assert streamed == (whole.choices[0].message.content or ""), (streamed, whole)
demanded = ask(tools=[TOOL], tool_choice="required", max_tokens=300, parallel_tool_calls=False)
(call,) = demanded.choices[0].message.tool_calls
assert json.loads(call.function.arguments)["x"] in (1, 2)
for wrong, kind in (
    ({"temperature": 9}, litellm.BadRequestError),
    ({"model": "openai/other"}, litellm.NotFoundError),
):
    try:
        ask(**wrong)
    except kind:
        continue
    raise AssertionError(f"{wrong} was not refused as {kind.__name__}")
print("ok")
