"""Runs the cells of a table, each in a process of its own: one that fails stops no other.

``python -m enginewright.builder.cells JOB OUTCOME`` is that process; it prints the build's lines.
Cells at once share export and reference through the stage cache: one makes what others wait for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from enginewright.builder.cache import DEFAULT_LIMIT
from enginewright.builder.child_process import (
    Lifeline,
    end_with_parent,
    leaving_on_sigterm,
    run_child,
)
from enginewright.builder.matrix import Cell
from enginewright.builder.recipe import make_recipe
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import BuildError, EnginewrightError, MissingDependencyError

Tell = Callable[[str], None]
_LAST_LINES = 15


@dataclass(frozen=True)
class Outcome:
    """What became of a cell. ``cached``: the stages that were taken from the cache.

    ``device``: "not run" where the engine was checked by its graph, for want of its device.
    """

    name: str
    target: str
    precision: str
    status: Literal["built", "failed", "skipped"]
    seconds: float = 0.0
    path: str | None = None
    size: int | None = None
    cached: tuple[str, ...] = field(default=())
    message: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Order:
    """Where cells go and how they are built: ``cache_limit`` is as of ``build``.

    ``locks``: a folder with a lock for each cell.
    """

    output: Path
    cache_limit: int = DEFAULT_LIMIT
    locks: Path | None = None


def run_cells(cells: Sequence[Cell], order: Order, *, jobs: int, tell: Tell) -> list[Outcome]:
    """Build the cells, ``jobs`` at once; the outcomes in the cells' order.

    However this process ends, those of the cells end too.
    """
    threads = max(1, available_cores() // jobs)
    with leaving_on_sigterm(), Lifeline() as lifeline, ThreadPoolExecutor(jobs) as pool:
        try:
            run = partial(run_cell, order=order, tell=tell, lifeline=lifeline, threads=threads)
            return list(pool.map(run, cells))
        finally:
            lifeline.cut()


def run_on_ray(cells: Sequence[Cell], order: Order, *, tell: Tell) -> list[Outcome]:
    """The same as tasks of Ray, wherever it has workers; all of them must see the output.

    The cluster is the one that RAY_ADDRESS names, else this machine. Raises MissingDependencyError
    without Ray.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--ray needs ray: pip install 'enginewright[ray]'") from error
    if not ray.is_initialized():
        dashboard = None if "RAY_ADDRESS" in os.environ else False
        try:
            ray.init(log_to_driver=False, include_dashboard=dashboard)
        except ConnectionError as error:
            raise BuildError(f"--ray: no cluster at RAY_ADDRESS: {error}") from error
    task = ray.remote(num_cpus=1)(_ray_task)
    order = replace(order, output=order.output.absolute())
    waiting = {task.remote(cell, order): cell for cell in cells}
    found: dict[str, Outcome] = {}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        cell = waiting.pop(done)
        try:
            found[cell.name] = ray.get(done)
        except ray.exceptions.RayError as error:
            found[cell.name] = _failed(cell, 0.0, f"Ray: {error}")
        tell(f"{cell.name}: {found[cell.name].status}")
    return [found[cell.name] for cell in cells]


def run_cell(
    cell: Cell, order: Order, tell: Tell, lifeline: Lifeline, threads: int | None = None
) -> Outcome:
    """Build one cell in a process of its own and say what became of it; never raises for it."""
    if cell.recipe is None:
        return Outcome(cell.name, cell.target, cell.precision, "skipped", message=cell.skipped)
    started = time.perf_counter()
    with TemporaryDirectory(prefix="enginewright-cell-") as scratch:
        job, answer, said = (Path(scratch, name) for name in ("job", "outcome", "stderr"))
        recipe = cell.recipe.model_dump(mode="json", exclude_unset=True)
        asked = {"recipe": recipe, **asdict(order)}
        job.write_text(json.dumps(asked, default=str), "utf-8")
        command = [sys.executable, "-m", "enginewright.builder.cells", str(job), str(answer)]

        def told_of(line: str) -> None:
            tell(f"{cell.name}: {line}")

        status = run_child(command, _environment(threads), said, told_of, lifeline)
        seconds = time.perf_counter() - started
        if not answer.exists():
            return _failed(cell, seconds, _death(status, said.read_text("utf-8", "replace")))
        told = json.loads(answer.read_text("utf-8"))
    if told["error"] is not None:
        return _failed(cell, seconds, told["error"])
    return _built(cell, seconds, Path(told["path"]))


def _ray_task(cell: Cell, order: Order) -> Outcome:
    with Lifeline() as lifeline:
        return run_cell(cell, order, lambda line: None, lifeline)


def _environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def _built(cell: Cell, seconds: float, path: Path) -> Outcome:
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    files = {entry["sha256"]: entry["size"] for entry in manifest["files"].values()}
    return Outcome(
        cell.name,
        cell.target,
        cell.precision,
        "built",
        seconds,
        str(path),
        sum(files.values()),
        tuple(dict.fromkeys(_cached(path.glob("evidence/**/build.json")))),
        device=_device(manifest["conformance"].values()),
    )


def _device(found: Iterable[Mapping[str, Any]]) -> str | None:
    return "not run" if any(each.get("device") == "not run" for each in found) else None


def _cached(records: Iterable[Path]) -> list[str]:
    decisions = [each for path in records for each in json.loads(path.read_text("utf-8"))["cache"]]
    return [each["stage"] for each in decisions if each["hit"]]


def _failed(cell: Cell, seconds: float, message: str) -> Outcome:
    return Outcome(cell.name, cell.target, cell.precision, "failed", seconds, message=message)


def _death(status: int, said: str) -> str:
    if status < 0:
        hint = "; was there enough memory?" if status == -signal.SIGKILL else ""
        how = f"was ended by {signal.Signals(-status).name}{hint}"
    else:
        how = f"ended with status {status}"
    last = "\n".join(said.strip().splitlines()[-_LAST_LINES:]) or "(it said nothing)"
    return f"the cell's process {how}\n{last}"


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Plain data for JSON."""
    return {name: value for name, value in asdict(outcome).items() if value not in (None, ())}


def main(job: str, answer: str) -> None:
    """The process of one cell."""
    from enginewright.builder.pipeline import build

    asked = json.loads(Path(job).read_text("utf-8"))
    told: dict[str, str | None] = {"error": None, "path": None}
    try:
        recipe, locks = make_recipe(asked["recipe"]), asked["locks"]
        path = build(
            recipe,
            Path(asked["output"]),
            progress=lambda line: print(line, flush=True),
            cache_limit=asked["cache_limit"],
            locked=None if locks is None else Path(locks),
        )
        told["path"] = str(path)
    except EnginewrightError as error:
        told["error"] = str(error)
    Path(answer).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    end_with_parent(Path(sys.argv[1]).parent)
    main(*sys.argv[1:])
