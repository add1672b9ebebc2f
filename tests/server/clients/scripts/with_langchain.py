"""langchain-openai against the server at argv[1]: answers, streams, calls, a pydantic form."""

from __future__ import annotations

import sys

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


@tool
def look(count: int) -> str:
    """Look at so many things."""
    return f"{count} cats"


class Seen(BaseModel):
    """What was seen."""

    count: int = Field(ge=0, le=9)
    tame: bool


base = sys.argv[1] + "/v1"
chat = ChatOpenAI(model="tiny", base_url=base, api_key="any", seed=5, max_tokens=9, max_retries=0)
whole = chat.invoke("Call me Ishmael.")
assert isinstance(whole, AIMessage)
assert whole.usage_metadata["output_tokens"] <= 9
streamed = "".join(chunk.text for chunk in chat.stream("Call me Ishmael."))
assert streamed == whole.text, (streamed, whole.text)

text = OpenAI(model="tiny", base_url=base, api_key="any", seed=5, max_tokens=9, max_retries=0)
assert isinstance(text.invoke("Call me Ishmael."), str)

long = ChatOpenAI(model="tiny", base_url=base, api_key="any", seed=5, max_retries=0)
called = long.bind_tools([look], tool_choice="look").invoke("Look.")
(call,) = called.tool_calls
assert call["name"] == "look", call
turns = [
    HumanMessage("Look."),
    called,
    ToolMessage(look.invoke(call["args"]), tool_call_id=call["id"]),
]
assert isinstance(chat.invoke(turns), AIMessage)

for seed in range(20):  # a random model may write white space until it is cut
    long = ChatOpenAI(model="tiny", base_url=base, api_key="any", seed=seed, max_retries=0)
    try:
        seen = long.with_structured_output(Seen, method="json_schema", strict=True).invoke("Look.")
        break
    except openai.LengthFinishReasonError:
        continue
assert isinstance(seen, Seen)
assert 0 <= seen.count <= 9
print("ok")
