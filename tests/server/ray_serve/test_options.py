"""What Ray Serve is told, and what its router compares: without Ray."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.ray_serve.forwarding import prompt_of
from enginewright.server.ray_serve.options import RayOptions


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"replicas": 2}, "'replicas' is not legal: there are min_replicas"),
        ({"min_replicas": 0}, "min_replicas=0"),
        ({"min_replicas": 3}, "max_replicas=1 is less than min_replicas=3"),
        ({"target_ongoing_requests": 0}, "target_ongoing_requests=0"),
        ({"num_gpus": -1}, "num_gpus=-1"),
        ({"prefix_aware": 1}, "prefix_aware=1"),
    ],
)
def test_what_is_not_legal_is_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(EnginewrightError, match=told):
        RayOptions.of(given)


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"prompt": "abc"}, "abc"),
        ({"prompt": [1, 2]}, "1\n2"),
        ({"messages": [{"role": "user", "content": "abc"}]}, "user\nabc"),
        (
            {"system": "s", "messages": [{"role": "user", "content": [{"text": "abc"}]}]},
            "s\nuser\nabc",
        ),
        ({"instructions": "s", "input": "abc"}, "s\nabc"),
        ({"model": "m"}, "/p"),
        ([1], "/p"),
    ],
)
def test_what_a_request_begins_with(body: Any, prompt: str) -> None:
    assert prompt_of("/p", json.dumps(body).encode()) == prompt


def test_a_body_that_is_no_json_has_its_path() -> None:
    assert prompt_of("/p", b"{") == prompt_of("/p", b"") == prompt_of("/p", b"[" * 100_000) == "/p"
