"""Lines of a batch, and the file of their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.batch.lines import Line, read_line, read_lines
from enginewright.server.batch.output import BatchOutput

CHAT = {"method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({**CHAT}, "custom_id=None"),
        ({**CHAT, "custom_id": "uni\ud800"}, r"custom_id='uni\ud800' holds half of a surrogate"),
        ({**CHAT, "custom_id": "a", "method": "GET"}, "method='GET'"),
        ({**CHAT, "custom_id": "a", "url": "/v1/embeddings"}, "url='/v1/embeddings'"),
        ({**CHAT, "custom_id": "a", "body": 7}, "body=7"),
        ({**CHAT, "custom_id": "a", "body": {"stream": True}}, "body.stream"),
    ],
)
def test_a_wrong_line_says_why(data: Any, told: str) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    line = read_line(3, text.encode())
    assert line.number == 3
    assert line.problem is not None
    assert told in line.problem


def test_a_name_that_comes_twice_is_the_later_ones_mistake(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(
        "\n".join(json.dumps({**CHAT, "custom_id": c}) for c in ("a", "b", "a")) + "\n\n"
    )
    lines = list(read_lines(path))
    assert [line.id for line in lines] == ["batch_req_1", "batch_req_2", "batch_req_3"]
    assert [line.problem for line in lines[:2]] == [None, None]
    assert "that of line 1" in (lines[2].problem or "")


def test_a_half_written_last_line_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first, second = Line(1, "a"), Line(2, "b")
    with BatchOutput(path) as output:
        output.write(first, 200, {"x": "é\ud800"})
        output.write(second, 400, {"error": {"message": "no"}})
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines()[0]) + 2, len(whole)):
        path.write_bytes(whole[:cut])
        with BatchOutput(path) as output:
            assert output.has(first)
            assert not output.has(second)
            output.write(second, 400, {"error": {"message": "no"}})
        assert path.read_bytes() == whole
    with BatchOutput(path) as output:
        assert (output.done, output.errors) == (2, 1)


def test_answers_of_another_input_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with BatchOutput(path) as output:
        output.write(Line(1, "a"), 200, {})
        with pytest.raises(EnginewrightError, match="belongs to another input"):
            output.has(Line(1, "z"))
        with pytest.raises(EnginewrightError, match="another batch is writing it"):
            BatchOutput(path)


@pytest.mark.parametrize("text", ["hello\n", "{}\n", "[1]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(EnginewrightError, match="something else than a batch's answers"):
        BatchOutput(path)
    assert path.read_text() == text
