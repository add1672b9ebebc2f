"""What is wrong in a call of ``bench`` is told at once, in one line, and starts no process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from enginewright.cli.bench import group
from enginewright.cli.main import VERBS, main
from enginewright.runtime.cores import MOST_THREADS


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process may be started."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))


def commands() -> Iterator[str]:
    """All verbs that take --threads, those of ``bench`` behind its name."""
    for names, verbs in ((), VERBS), (("bench",), group.VERBS):
        context = click.Context(main if not names else group.command)
        for name in verbs:
            found = context.command.get_command(context, name)  # type: ignore[attr-defined]
            if any(each.name == "threads" for each in found.params) and name != "serve":
                yield " ".join([*names, name])


@pytest.mark.usefixtures("alone")
def test_threads_beyond_the_bound_are_refused_by_every_verb(tiny_artifact: Path) -> None:
    verbs = list(commands())
    assert {"run", "batch", "bench speed", "bench peers"} <= set(verbs)
    for verb in verbs:
        arguments = [*verb.split(), str(tiny_artifact), "--threads", str(MOST_THREADS + 1)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, verb
        said = "Invalid value for '--threads': 257 is not in the range 1<=x<=256"
        assert said in result.stderr, verb


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("rate", ["nan", "inf", "-inf", "-1", "0", "many"])
def test_a_rate_that_is_none_is_refused(rate: str, tiny_artifact: Path) -> None:
    result = bench("throughput", tiny_artifact, "--rate", rate)
    assert result.exit_code == 2
    assert "Invalid value for '--rate':" in result.stderr
    assert rate in result.stderr


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{}", "error: speculative_config={} has no num_speculative_tokens"),
        ('{"method": "ngram"}', "has no num_speculative_tokens: it must say how many"),
        ('{"method": "eagle", "num_speculative_tokens": 3}', "method='eagle' must be 'ngram'"),
        ("[" * 100_000, "it is no JSON"),
    ],
)
def test_an_incomplete_speculative_config_is_refused(
    config: str, said: str, tiny_artifact: Path
) -> None:
    result = bench("speculation", tiny_artifact, "--speculative-config", config)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("nope", "an/artifact"), ""),
        (("an/artifact", "latency"), ""),
        (("latancy", "an/artifact"), "Did you mean 'latency'? "),
        (("latancy",), "Did you mean 'latency'? "),
        (("latancy", "--runs", "2"), "Did you mean 'latency'? "),
    ],
)
def test_a_measurement_that_there_is_not_lists_those_there_are(
    arguments: tuple[str, ...], hint: str
) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    names = ", ".join(group.VERBS)
    assert f"No such command {arguments[0]!r}. {hint}There are: {names}." in result.stderr


def test_an_artifact_that_is_called_nearly_like_a_measurement_is_one(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(tiny_artifact, tmp_path / "latencys").parent)
    small = ("--runs", 1, "--prompt-tokens", 16, "--decode-tokens", 8, "--threads", 1)
    result = bench("latencys", *small)
    assert result.exit_code == 0, result.output


def test_threads_beyond_the_cores_are_told_by_the_parent(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    result = bench("latency", tiny_artifact, "--threads", 2, "--context", 10_000)
    assert result.exit_code == 2, "nothing is measured here"
    assert "threads=2: this process may use 1 cores" in caplog.text
