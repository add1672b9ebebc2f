"""``enginewright report``: one HTML page about an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from enginewright.cli.engine_options import ArtifactName
from enginewright.runtime.errors import EnginewrightError, SettingsError


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option(
    "--beside",
    type=ArtifactName(path_type=Path),
    multiple=True,
    help="Another artifact of the model, to be compared with; may be given several times.",
)
@click.option(
    "--bench",
    "bench_files",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="What `enginewright bench latency` or `throughput` told with --json; several are fine.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="By default evidence/report.html in the artifact, outside its hashes.",
)
def command(
    artifact: Path, beside: tuple[Path, ...], bench_files: tuple[Path, ...], output: Path | None
) -> None:
    """Write a page about ARTIFACT that needs no other file, and print its path.

    What it was built from, how exact and how fast it is, its memory, what each pass did to the
    graph, and the error of each matrix that was rounded.
    """
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.atomic import write_text
    from enginewright.runtime.report.content import Asked
    from enginewright.runtime.report.page import REPORT_FILE, render

    opened = Artifact.open(artifact)
    others = [Artifact.open(path) for path in beside]
    for other in others:
        if other.manifest.source.digest != opened.manifest.source.digest:
            raise EnginewrightError(
                f"{other.path} was built from another model than {opened.path}; give --beside "
                f"artifacts of one model"
            )
    place = output or opened.evidence(REPORT_FILE)
    asked = Asked(opened, others, [_bench(path) for path in bench_files])
    write_text(place, render(asked, place))
    click.echo(place)


def _bench(path: Path) -> dict[str, Any]:
    from enginewright.cli.settings_file import read_settings

    found = read_settings(path)
    if not {"artifact", "threads", "machine", "figures"} <= found.keys():
        raise SettingsError(
            f"{path}: is no measurement of one artifact; make one with: enginewright bench latency "
            f"ARTIFACT --json > {path.name}"
        )
    return found
