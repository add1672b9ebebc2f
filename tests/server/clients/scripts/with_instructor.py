"""instructor against the server at argv[1]: pydantic models out of calls and of JSON schemas."""

from __future__ import annotations

import sys
from typing import Literal

import instructor
import openai
from instructor.core import IncompleteOutputException
from pydantic import BaseModel, Field


class Seen(BaseModel):
    """What was seen."""

    count: int = Field(ge=0, le=9)
    kind: Literal["cat", "dog"]


client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="any", max_retries=0)
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    for seed in range(20):  # a random model may write white space until it is cut
        try:
            seen = instructor.from_openai(client, mode=mode).chat.completions.create(
                model="tiny",
                response_model=Seen,
                messages=[{"role": "user", "content": "Look."}],
                seed=seed,
                max_retries=0,
            )
            break
        except IncompleteOutputException:
            continue
    assert isinstance(seen, Seen), (mode, seen)
    assert 0 <= seen.count <= 9
print("ok")
