"""What a build will take and what its engine will need, from config and headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from enginewright.builder.build_memory import host_peak
from enginewright.builder.cache import StageCache
from enginewright.builder.engine_size import graph_bytes, weights_bytes
from enginewright.builder.history import BuildSize, TimeEstimate, estimate_times, past_builds
from enginewright.builder.parameters import Architecture, read_architecture
from enginewright.builder.recipe import KVCacheSpec, Recipe
from enginewright.builder.stages import Stages
from enginewright.builder.subject import Subject
from enginewright.builder.targets.operators import has_library
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.manifest import KVEntry
from enginewright.runtime.doctor.host import read_host
from enginewright.runtime.doctor.needs import Needs, kv_bytes_per_token
from enginewright.runtime.errors import BuildError

_LIBRARY = 1_430_000
"""Of the CPU's operators, linked with the C++ library."""
_POSITION = 2 * 4 * 0.7
"""Of the reference, a kept logit: an id and a probability, compressed."""
_POSITIONS, _KEPT = 1022, 256
_EXPORTED_LAYER = 295_000
_MANIFEST, _MANIFEST_LAYER = 20_000, 1_500


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds, each as it is expected before the build.

    ``host_bytes``: anonymous memory at the peak of the build. ``disk_bytes``: what artifact and
    cache take together. ``needs``: of the engine that is preferred, when it serves.
    """

    name: str
    subject_size: BuildSize
    engine_bytes: int
    artifact_bytes: int
    disk_bytes: int
    host_bytes: int
    kv_bytes_per_token: int
    max_context: int
    needs: Needs
    times: Mapping[str, TimeEstimate] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    """Of export and reference, what is in the cache and takes no time."""

    @property
    def seconds(self) -> float | None:
        """Of the stages together; None where there is no record of one."""
        ran = [each.seconds for name, each in self.times.items() if name not in self.held]
        return sum(ran) if ran else None

    def at(self, batch: int, context: int) -> int:
        """Bytes of an engine that serves so many rows of so many tokens."""
        row = context * self.kv_bytes_per_token + self.needs.row_logits
        return self.needs.of(0) + batch * row

    def rows_within(self, memory: int, context: int) -> int:
        """Rows of that many tokens that fit the memory together."""
        row = context * self.kv_bytes_per_token + self.needs.row_logits
        return max(0, (memory - self.needs.of(0)) // row)

    def problems(self, output: Path, memory: int | None = None) -> Iterator[str]:
        """Why it cannot fit: on this machine, or in the ``memory`` that is to serve it."""
        available = read_host().available_bytes
        if available is not None and self.host_bytes > available:
            yield f"host memory: {_size(self.host_bytes)} at the peak, {_size(available)} available"
        for place in {_existing(output), _existing(cache_folder() or output)}:
            free = shutil.disk_usage(place).free
            if self.disk_bytes > free:
                yield f"disk: {_size(self.disk_bytes)} needed, {_size(free)} free at {place}"
        least = self.at(1, self.max_context)
        if memory is not None and least > memory:
            yield (
                f"memory to serve: {_size(least)} for one row of {self.max_context} tokens, "
                f"{_size(memory)} given; {self._fitting(memory)}"
            )

    def check(self, output: Path, memory: int | None = None) -> None:
        """Raise BuildError where the build, or its engine, cannot fit."""
        found = list(self.problems(output, memory))
        if found:
            listed = "\n".join(f"  {line}" for line in found)
            raise BuildError(
                f"{self.name} does not fit, so nothing is built:\n{listed}\n"
                f"enginewright plan shows what would; lower limits.max_context or the precision, "
                f"or build where there is more"
            )

    def as_data(self) -> dict[str, Any]:
        """Plain data for evidence/ and for --json."""
        data = asdict(self) | {"held": sorted(self.held)}
        data["size"] = data.pop("subject_size")
        return data | {"seconds": self.seconds, "serving_bytes": self.needs.total}

    def _fitting(self, memory: int) -> str:
        left = memory - self.needs.of(0) - self.needs.row_logits
        most = left // self.kv_bytes_per_token
        return f"limits.max_context of {most} would fit" if most >= 2 else "no context would fit"


def plan(subject: Subject) -> Estimate:
    """The estimate for an open recipe; no weight is read."""
    recipe, source = subject.recipe, subject.source
    architecture = read_architecture(subject.config, subject.family)
    positions = recipe.limits.max_context
    weights = weights_bytes(architecture, recipe.target, recipe.precision, positions, source.weight)
    library = _LIBRARY if recipe.target == "cpu" and has_library() else 0
    engine = weights + graph_bytes(architecture, recipe.target, recipe.precision) + library
    with TemporaryDirectory() as folder:
        names = subject.source.write_tokenizer(Path(folder))
        tokenizer = sum((Path(folder) / name).stat().st_size for name in names)
        held = Stages(StageCache(), subject).held(Path(folder))
    beside = tokenizer + _beside(recipe, architecture)
    exported = _EXPORTED_LAYER * architecture.layers
    per_token = _kv_per_token(recipe, architecture)
    size = BuildSize(recipe.target, recipe.precision, architecture.count, architecture.layers)
    return Estimate(
        name=recipe.name,
        subject_size=size,
        engine_bytes=engine,
        artifact_bytes=engine + beside,
        disk_bytes=engine + 2 * beside + exported,
        host_bytes=host_peak(architecture, recipe.target, weights, engine, held),
        kv_bytes_per_token=per_token,
        max_context=positions,
        needs=Needs(
            weights=weights,
            row_cache=positions * per_token,
            row_logits=4 * architecture.vocab_size,
            rows=recipe.limits.max_batch,
        ),
        times=estimate_times(size, past_builds()),
        held=held,
    )


def contexts(limit: int) -> Sequence[int]:
    """The contexts of a table: powers of 4 from 512 on, and the limit."""
    return [*(size for size in (512, 2048, 8192, 32768, 131072) if size < limit), limit]


def batches(limit: int) -> Sequence[int]:
    """The batches of a table."""
    return [*(size for size in (1, 4, 16, 64, 256) if size < limit), limit]


def _beside(recipe: Recipe, architecture: Architecture) -> int:
    """Reference and manifest."""
    kept = min(_KEPT, architecture.vocab_size)
    positions = min(_POSITIONS, 2 * recipe.limits.max_context)
    manifest = _MANIFEST + _MANIFEST_LAYER * architecture.layers
    return int(positions * kept * _POSITION) + manifest


def _kv_per_token(recipe: Recipe, architecture: Architecture) -> int:
    """Of the engine that is preferred."""
    cache = architecture.caches[0]
    stored = (recipe.kv_cache or KVCacheSpec()).dtype
    by_itself = "float32" if recipe.precision == "fp32" else "float16"
    dtype = by_itself if stored == "auto" else stored
    if recipe.target == "cpu" and not has_library():
        dtype = "float32"  # the plain plan's
    dtype = "float8" if dtype == "fp8" else dtype
    entry = KVEntry("paged", architecture.layers, cache.kv_heads, cache.head_dim, dtype)
    found = kv_bytes_per_token(entry)
    assert found is not None
    return found


def _existing(place: Path) -> Path:
    return next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())


def _size(count: int) -> str:
    if count < 1e6:
        return f"{count} B"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
