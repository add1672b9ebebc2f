"""What is shipped, what it asks for, and who may import whom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
IMPORT_ROOTS = ("runtime", "builder", "plugins")
PORTIONS = ("runtime", "cli", "server", "builder", "plugins")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    pure = os.environ | {"HATCH_BUILD_NO_HOOKS": "true"}
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=pure, check=True, capture_output=True
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode("utf-8"))


def sources() -> set[str]:
    """The files that the import roots hold, as they must be named in the wheel."""
    found = set()
    for root in IMPORT_ROOTS:
        for path in (ROOT / root / "enginewright").rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(path.relative_to(ROOT / root).as_posix())
    return found


def test_the_namespace_has_no_init_file() -> None:
    for root in IMPORT_ROOTS:
        assert not (ROOT / root / "__init__.py").exists()
        assert not (ROOT / root / "enginewright" / "__init__.py").exists()


def test_the_wheel_holds_the_sources_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert names == sources()
    assert "enginewright/__init__.py" not in names


def test_every_portion_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"enginewright/{portion}/py.typed" for portion in PORTIONS} <= set(wheel.namelist())


def test_the_wheel_carries_its_licence_and_command(wheel: zipfile.ZipFile) -> None:
    names = {name.partition(".dist-info/")[2] for name in wheel.namelist()}
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))

    assert "licenses/LICENSE" in names
    assert "enginewright = enginewright.cli.main:main" in wheel.read(entry_points).decode()


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def requirements(metadata: Message, extra: str | None) -> set[str]:
    """Names of what the core (None) or an extra asks for."""
    wanted = f"extra == '{extra}'"
    found = set()
    for line in metadata.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        if wanted in marker if extra else not marker:
            found.add(canonical(re.split(r"[\[>]", requirement)[0]))
    return found


def test_the_core_is_four_packages(metadata: Message) -> None:
    assert requirements(metadata, None) == {"numpy", "tokenizers", "jinja2", "click"}


def test_the_extras_are_declared(metadata: Message) -> None:
    assert {"cpu", "structured", "build", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert requirements(metadata, "cpu") == {"onnxruntime"}
    assert requirements(metadata, "structured") == {"llguidance"}
    assert {"fastapi", "uvicorn", "prometheus-client"} <= requirements(metadata, "serve")
    assert requirements(metadata, "rtx") == {"tensorrt-rtx-cu13", "cuda-bindings"}
    assert requirements(metadata, "tensorrt") == {"tensorrt-cu13", "cuda-bindings"}
    assert requirements(metadata, "cuda") == {"onnxruntime-gpu", "cuda-bindings"}
    assert requirements(metadata, "kernels") == {"triton"}
    assert {"torch", "transformers", "onnx"} <= requirements(metadata, "build")


def test_no_extra_but_the_targets_own_brings_an_onnxruntime(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", [])) - {"cpu", "cuda"}

    assert not [e for e in extras if any("onnxruntime" in r for r in requirements(metadata, e))]


def test_every_requirement_of_the_tests_environment_is_pinned(metadata: Message) -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {canonical(line.partition("==")[0]) for line in lines if "==" in line}
    extras = (None, "cpu", "serve", "sign", "oci", "ray", "build", "dev", "rtx", "kernels")
    asked = set().union(*(requirements(metadata, extra) for extra in extras))

    assert asked == pinned


def test_imports_keep_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    assert contracts["contracts"], "no contract is written down"

    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)

    assert status == 0, "see the captured output"
