"""The options of ``serve --ray``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--ray", "over_ray", is_flag=True, help="Serve on a Ray cluster, by Ray Serve."),
    click.option("--ray-address", help="With --ray: the cluster; by default one of this machine."),
    click.option("--min-replicas", type=int, help="With --ray: fewest replicas.  [1]"),
    click.option("--max-replicas", type=int, help="With --ray: most replicas.  [1]"),
    click.option(
        "--target-ongoing-requests",
        type=float,
        help="With --ray: requests of a replica, above which another one comes; by default what "
        "its engine runs together.",
    ),
    click.option(
        "--prefix-aware/--no-prefix-aware",
        default=None,
        help="With --ray: send requests that begin alike to the same replica; by default so.",
    ),
    click.option("--num-cpus", type=float, help="With --ray: of each replica.  [1]"),
    click.option("--num-gpus", type=float, help="With --ray: of each replica.  [0]"),
)
_NAMES = (
    "min_replicas",
    "max_replicas",
    "target_ongoing_requests",
    "prefix_aware",
    "num_cpus",
    "num_gpus",
)


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_ray_options(flags: dict[str, Any]) -> tuple[dict[str, Any], str | None] | None:
    """Take them out of the flags: RayOptions' fields and the address; None without ``--ray``."""
    over_ray, address = flags.pop("over_ray"), flags.pop("ray_address")
    given = {name: flags.pop(name) for name in _NAMES}
    found = {name: value for name, value in given.items() if value is not None}
    if over_ray:
        return found, address
    for name in found | ({"ray_address": address} if address is not None else {}):
        raise click.UsageError(f"--{name.replace('_', '-')} needs --ray")
    return None
