"""``chat``: conversations through a pipe, and Ctrl-C."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginewright.cli import chat
from enginewright.cli.main import main
from enginewright.runtime import LLM, SamplingParams

GREEDY = ("--temperature", "0", "--max-tokens", "6", "--ignore-eos", "--threads", "1")


def talk(artifact: Path, lines: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["chat", str(artifact), *GREEDY, *arguments], input=lines)


def expected(artifact: Path, *turns: str, system: str | None = None) -> list[str]:
    """What the library answers to each turn of one conversation."""
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    answers = []
    with LLM(artifact, threads=1) as llm:
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            answers.append(llm.chat(messages, params)[0].outputs[0].text)
            messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_the_end_of_input_is_exit_code_0(tiny_artifact: Path) -> None:
    assert talk(tiny_artifact, "").exit_code == 0


def test_a_conversation_is_answered_and_remembered(tiny_artifact: Path) -> None:
    result = talk(tiny_artifact, "hello\nand then?\n/exit\n")

    first, second = expected(tiny_artifact, "hello", "and then?")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{first}\n[6 tokens, first after ")
    assert f"]\n{second}\n[6 tokens" in result.stdout
    assert "tokens/s]" in result.stdout


def test_clear_forgets_all_but_the_system_message(tiny_artifact: Path) -> None:
    result = talk(tiny_artifact, "hello\n/clear\nhello\n", "--system", "be kind")

    (answer,) = expected(tiny_artifact, "hello", system="be kind")
    assert result.stdout.count(f"{answer}\n[6 tokens") == 2


def test_set_changes_the_next_answer(tiny_artifact: Path) -> None:
    result = talk(tiny_artifact, "/set max_tokens=2\nhello\n/set system=be kind\n/set\n")

    assert "[2 tokens" in result.stdout
    assert "system = 'be kind'" in result.stdout
    assert "max_tokens = 2" in result.stdout


def test_a_wrong_line_harms_nothing(tiny_artifact: Path) -> None:
    long = "x" * 20_000
    result = talk(tiny_artifact, f"/set top_p=7\n/nonsense\n{long}\nhello\n")

    (answer,) = expected(tiny_artifact, "hello")
    assert result.exit_code == 0
    assert "error: top_p=7.0" in result.stderr
    assert "/clear forgets it" in result.stderr
    assert f"{answer}\n[6 tokens" in result.stdout


def test_ctrl_c_stops_the_answer_and_not_the_program(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def interrupted(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat, "say", interrupted)
    result = talk(tiny_artifact, "hello\nonce more\n")

    assert result.exit_code == 0
    assert " [stopped]\n[2 tokens" in result.stdout
    assert "[6 tokens" in result.stdout, "the next answer is whole"


def test_ctrl_c_at_the_prompt_tells_how_to_leave(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = iter([KeyboardInterrupt, EOFError])

    def typed(prompt: str) -> str:
        raise next(events)

    monkeypatch.setattr(builtins, "input", typed)
    result = talk(tiny_artifact, "")

    assert result.exit_code == 0
    assert "/exit or Ctrl-D leaves" in result.stdout


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([], "no tokens"),
        ([1.5], "1 tokens, first after 0.50 s"),
        ([1.5, 1.75, 2.0], "3 tokens, first after 0.50 s, 4.0 tokens/s"),
    ],
)
def test_the_speed_leaves_out_the_first_token(times: list[float], said: str) -> None:
    assert chat.speed(1.0, times) == said


def test_a_chat_template_may_be_given(tiny_artifact: Path) -> None:
    result = talk(tiny_artifact, "hello\n", "--chat-template", "{{ messages[-1].content }}")
    with LLM(tiny_artifact, threads=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        ids = llm.get_tokenizer().encode("hello", add_special_tokens=False)
        answer = llm.generate(ids, params)[0].outputs[0].text
    assert result.stdout.startswith(f"{answer}\n[6 tokens")
