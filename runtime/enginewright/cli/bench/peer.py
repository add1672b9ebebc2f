"""Engines that an artifact can be measured beside: how each is installed, converted and started."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from enginewright.cli.bench.environment import bench_folder, environment
from enginewright.cli.bench.source import PeerSource
from enginewright.runtime.errors import EnginewrightError


@dataclass(frozen=True)
class PeerModel:
    """A peer with a model: what starts its worker, and how large the weights are."""

    python: Path
    worker: str
    path: Path
    weight_bytes: int


class Peer(ABC):
    """One engine. ``requirement`` is pinned; ``worker`` is its module in workers/.

    ``precisions``: those that it is measured in, by default; ``variables``: for pip.
    """

    requirement: ClassVar[str]
    worker: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    others: ClassVar[tuple[str, ...]] = ()
    """Further precisions, measured when they are asked for."""
    variables: ClassVar[Mapping[str, str]] = {}

    @property
    def folder(self) -> Path:
        """Where its environment and models are kept."""
        folder = bench_folder("peers") / self.requirement.replace("==", "-")
        folder.mkdir(exist_ok=True)
        return folder

    def python(self) -> Path:
        """The interpreter of its own environment, which is made if need be."""
        place = self.folder / "environment"
        return environment(place, [self.requirement], variables=self.variables).python

    def model(self, source: PeerSource, precision: str) -> PeerModel:
        """Its model of a source, converted if need be; raises EnginewrightError if it has none."""
        legal = self.precisions + self.others
        if precision not in legal:
            raise EnginewrightError(f"has no {precision}; it has {', '.join(legal)}")
        python = self.python()
        path = self.folder / f"{source.key}-{precision}"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.folder, prefix="making-") as scratch:
                made = Path(scratch) / "model"
                self.convert(source, made, precision)
                made.rename(path)
        return PeerModel(python, self.worker, path, self.weight_bytes(path))

    @abstractmethod
    def convert(self, source: PeerSource, output: Path, precision: str) -> None:
        """Write its model with the peer's own tools to ``output``, a file or folder of its own."""

    @abstractmethod
    def weight_bytes(self, model: Path) -> int:
        """The size of what holds the weights."""
