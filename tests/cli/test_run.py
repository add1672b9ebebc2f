"""``run``: text in a pipe, JSON, prompts from stdin, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginewright.cli.main import main
from enginewright.runtime import LLM, SamplingParams


def run(artifact: Path, *arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["run", str(artifact), *arguments], input=stdin)


def answer(artifact: Path, *arguments: str, stdin: str | None = None) -> dict[str, Any]:
    result = run(artifact, "--json", "--temperature", "0", *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_the_answer_is_the_librarys(tiny_artifact: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    with LLM(tiny_artifact, threads=1) as llm:
        expected = llm.generate("hello", params)[0]
        chatted = llm.chat([{"role": "user", "content": "hello"}], params)[0]

    said = answer(tiny_artifact, "hello", "--max-tokens", "12", "--threads", "1")
    assert said["text"] == expected.outputs[0].text
    assert said["token_ids"] == expected.outputs[0].token_ids
    assert said["finish_reason"] == expected.outputs[0].finish_reason
    assert said["prompt_token_ids"] == expected.prompt_token_ids
    in_chat = answer(tiny_artifact, "hello", "--chat", "--max-tokens", "12")
    assert in_chat["prompt_token_ids"] == chatted.prompt_token_ids
    assert in_chat["token_ids"] == chatted.outputs[0].token_ids


def test_in_a_pipe_there_is_nothing_but_the_text(tiny_artifact: Path) -> None:
    expected = answer(tiny_artifact, "hello", "--max-tokens", "12")["text"]
    result = run(tiny_artifact, "hello", "--temperature", "0", "--max-tokens", "12")

    assert result.exit_code == 0
    assert result.stdout == expected + "\n"
    assert not result.stderr


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_prompt_from_stdin_loses_its_last_newline_only(
    tiny_artifact: Path, arguments: list[str]
) -> None:
    direct = answer(tiny_artifact, "two\nlines", "--max-tokens", "2")
    piped = answer(tiny_artifact, *arguments, "--max-tokens", "2", stdin="two\nlines\n")

    assert piped["prompt_token_ids"] == direct["prompt_token_ids"]


def test_a_system_message_comes_before_the_prompt(tiny_artifact: Path) -> None:
    plain = answer(tiny_artifact, "hi", "--chat", "--max-tokens", "1")
    system = answer(tiny_artifact, "hi", "--chat", "--system", "be kind", "--max-tokens", "1")

    assert len(system["prompt_token_ids"]) > len(plain["prompt_token_ids"])


def test_options_are_laid_over_the_models_defaults(tiny_artifact: Path) -> None:
    with LLM(tiny_artifact) as llm:
        defaults = llm.get_default_sampling_params()
    result = run(tiny_artifact, "hi", "--json", "--seed", "3", "--max-tokens", "2", "--ignore-eos")
    used = json.loads(result.stdout)["sampling_params"]

    assert used["temperature"] == defaults.temperature
    assert (used["seed"], used["max_tokens"], used["ignore_eos"]) == (3, 2, True)
    again = run(tiny_artifact, "hi", "--json", "--seed", "3", "--max-tokens", "2", "--ignore-eos")
    assert json.loads(again.stdout)["token_ids"] == json.loads(result.stdout)["token_ids"]


def test_timings_are_told(tiny_artifact: Path) -> None:
    timings = answer(tiny_artifact, "hi", "--max-tokens", "4", "--ignore-eos")["timings"]

    assert 0 < timings["first_token_seconds"] <= timings["total_seconds"]
    assert timings["load_seconds"] > 0
    assert timings["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "the prompt is empty"),
        (["x" * 20_000], "more than this engine's 600 tokens can hold"),
    ],
)
def test_a_wrong_request_is_exit_code_1(
    tiny_artifact: Path, arguments: list[str], said: str
) -> None:
    result = run(tiny_artifact, *arguments)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--temperature", "9", "temperature=9.0"),
        ("--max-tokens", "0", "max_tokens=0"),
        ("--top-k", "-7", "top_k=-7"),
    ],
)
def test_a_wrong_option_is_wrong_usage(
    tiny_artifact: Path, option: str, value: str, said: str
) -> None:
    result = run(tiny_artifact, "hi", option, value)

    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout


def test_stdin_that_is_no_text_is_wrong_usage(tiny_artifact: Path) -> None:
    result = run(tiny_artifact, stdin=b"\xff\xfe\x00")

    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr


def test_explain_says_what_set_each_parameter(tiny_artifact: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "3", "--explain")
    result = run(tiny_artifact, "hi", *options)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stderr.splitlines() if line}
    assert rows["temperature"] == ["0.0", "--temperature"]
    assert rows["max_tokens"] == ["3", "--max-tokens"]
    assert rows["top_k"] == ["0", "default"]
    assert "temperature" not in result.stdout
    said = answer(tiny_artifact, "hi", "--explain")["explanation"]
    assert said["temperature"] == {"value": 0.0, "origin": "--temperature"}
    assert said["max_tokens"] == {"value": 256, "origin": "the command's default"}
    assert "explanation" not in answer(tiny_artifact, "hi", "--max-tokens", "1")


def test_a_chat_template_may_be_given(tiny_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("<{{ messages[-1].content }}>")
    plain = answer(tiny_artifact, "<hi>", "--max-tokens", "1")["prompt_token_ids"]
    for template in (str(tmp_path / "own.jinja"), "<{{ messages[-1].content }}>"):
        options = ("--chat", "--chat-template", template, "--max-tokens", "1")
        assert answer(tiny_artifact, "hi", *options)["prompt_token_ids"] == plain
    wrong = run(tiny_artifact, "hi", "--chat-template", "chatml")
    assert wrong.exit_code == 2
    assert "--chat-template needs --chat" in wrong.stderr
    missing = run(tiny_artifact, "hi", "--chat", "--chat-template", "none.jinja")
    assert missing.exit_code == 1
    assert "failed to be opened" in missing.stderr


def test_a_model_without_an_artifact_is_answered_by_the_command(tmp_path: Path) -> None:
    result = run(Path("someone/tiny"), "hi")
    assert result.exit_code == 1
    assert "enginewright build --source someone/tiny" in result.stderr


def test_tokens_may_be_drafted(tiny_artifact: Path) -> None:
    config = json.dumps({"method": "ngram", "num_speculative_tokens": 3})
    arguments = ("hello hello", "--max-tokens", "12")
    drafted = answer(tiny_artifact, *arguments, "--speculative-config", config)
    assert drafted["token_ids"] == answer(tiny_artifact, *arguments)["token_ids"]


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ("ngram", 2, "it is no JSON"),
        ("[1]", 2, "it must be an object"),
        ('{"method": "eagle", "num_speculative_tokens": 3}', 1, "method='eagle' must be 'ngram'"),
    ],
)
def test_a_wrong_speculative_config_is_told(
    tiny_artifact: Path, config: str, code: int, said: str
) -> None:
    result = run(tiny_artifact, "hello", "--speculative-config", config)
    assert result.exit_code == code
    assert said in result.stderr
