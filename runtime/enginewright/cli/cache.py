"""``enginewright cache``: what builds keep for later ones, and how much of it."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from enginewright.cli.build import NEEDED
from enginewright.cli.build_options import SIZE
from enginewright.cli.extras import require
from enginewright.cli.text import size, table


@click.group()
def command() -> None:
    """List or trim the stage cache: what builds take over from earlier ones."""
    require("build", *NEEDED)


@command.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_entries(as_json: bool) -> None:
    """List the entries, the latest used first, and what ended builds left, which gc removes."""
    from enginewright.builder.cache import entries, leftovers

    found, left = entries(), leftovers()
    total = sum(entry.size for entry in found) + sum(each.size for each in left)
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "stage": entry.stage,
                "key": entry.key,
                "size": entry.size,
                "used": entry.used,
                "inputs": dict(entry.inputs),
            }
            for entry in found
        ]
        unusable = [{"stage": each.stage, "key": each.key, "size": each.size} for each in left]
        told = {"total_bytes": total, "entries": rows, "leftovers": unusable}
        click.echo(json.dumps(told, indent=2))
        return
    listed = [
        (entry.stage, entry.key[:12], size(entry.size), _ago(time.time() - entry.used))
        for entry in found
    ]
    listed += [(each.stage, each.key[:12], size(each.size), "leftover") for each in left]
    click.echo(table(("stage", "key", "size", "last used"), listed))
    click.echo(f"{_counted(len(found), len(left))}, {size(total)}")


@command.command("gc")
@click.option(
    "--max-size",
    type=SIZE,
    default="20GB",
    show_default=True,
    envvar="ENGINEWRIGHT_CACHE_LIMIT",
    help="What may stay; what was not used for longest goes first. 0 removes all.",
)
def remove_entries(max_size: int) -> None:
    """Remove leftovers, and entries until the rest fits --max-size. Artifacts keep their files."""
    from enginewright.builder.cache import Entry, collect, entries

    removed = collect(max_size)
    kept, used = entries(), sum(isinstance(each, Entry) for each in removed)
    freed = sum(each.size for each in removed)
    click.echo(
        f"removed {_counted(used, len(removed) - used)}, {size(freed)}; "
        f"{len(kept)} stay, {size(sum(entry.size for entry in kept))}"
    )


def _counted(entries: int, leftovers: int) -> str:
    return f"{entries} entries{f' and {leftovers} leftovers' if leftovers else ''}"


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} seconds ago"
