"""``enginewright lint``: what is probably wrong with an artifact, its template, or a prompt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.engine_options import ArtifactName

if TYPE_CHECKING:
    from enginewright.runtime.text.linter import Facts, Finding


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="A prompt as generate() would get it; may be given several times.",
)
@click.option(
    "--chat-template",
    metavar="TEMPLATE",
    help="Check this one instead: a path, a template, or a built-in name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    artifact: Path,
    prompts: tuple[str, ...],
    chat_template: str | None,
    as_json: bool,
) -> None:
    """Check ARTIFACT's special tokens, chat template and defaults, and prompts for it.

    Runs no engine. Exit code 1 when there is an error, 0 for warnings and notes.
    """
    if "" in prompts:
        raise click.UsageError("--prompt is empty: give a text")
    found = list(_findings(_facts(artifact, chat_template), prompts))
    if as_json:
        shown = [{**dataclasses.asdict(finding), "prompt": prompt} for prompt, finding in found]
        data = {"artifact": str(artifact), "findings": shown}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_page(found)))
    if any(finding.level == "error" for _, finding in found):
        ctx.exit(1)


def _facts(artifact: Path, chat_template: str | None) -> Facts:
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.text.linter import Facts
    from enginewright.runtime.text.templates import Templates
    from enginewright.runtime.text.tokenizer import Tokenizer

    opened = Artifact.open(artifact, verify="never")
    tokenizer = Tokenizer.from_file(opened.file("tokenizer.json"))
    return Facts.of(opened, tokenizer, Templates(opened, chat_template).source)


def _findings(facts: Facts, prompts: tuple[str, ...]) -> Iterator[tuple[str | None, Finding]]:
    """Every finding, with the prompt that it is about."""
    from enginewright.runtime.sampling.defaults import choose_defaults
    from enginewright.runtime.text import linter

    defaults = choose_defaults(facts.manifest)
    for finding in (
        *linter.lint_artifact(facts),
        *linter.lint_template(facts),
        *linter.lint_defaults(defaults),
    ):
        yield None, finding
    for prompt in prompts:
        for finding in linter.lint_prompt(facts, prompt) or linter.lint_ending(facts, prompt):
            yield prompt, finding


def _page(found: list[tuple[str | None, Finding]]) -> Iterator[str]:
    for prompt, finding in found:
        about = "" if prompt is None else f"prompt {prompt!r:.40}: "
        yield f"{finding.level} [{finding.code}] {about}{finding.message}"
        yield f"    {finding.advice}"
    levels = [finding.level for _, finding in found]
    yield ", ".join(f"{level}s: {levels.count(level)}" for level in ("error", "warning", "note"))
