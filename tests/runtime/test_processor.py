"""The processor's name and flags, and the order of plans that follows from them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import TuningEntry
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.plans import in_order
from enginewright.runtime.processor import (
    check_variables,
    has_tile_kernels,
    processor_name,
    why_plain_kernels,
)

OLD = "model name\t: An Old One\nflags\t\t: fpu sse2 avx f16c\n"
TILES = "flags\t: avx512vbmi avx512_bf16 avx512_vnni amx_tile amx_bf16 fpu\n"
NEW = "model name\t: A New One\nflags\t\t: fpu sse2 avx f16c avx2 fma\n"


@pytest.fixture(autouse=True)
def _x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def machine(root: Path, cpuinfo: str) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    return root


def test_what_the_system_says_of_its_processor(tmp_path):
    old = machine(tmp_path, OLD)
    assert processor_name(old) == "An Old One"
    assert why_plain_kernels(old) == "this processor has no avx2, fma"
    new = machine(tmp_path, NEW)
    assert processor_name(new) == "A New One"
    assert why_plain_kernels(new) is None


def test_a_system_that_does_not_tell(tmp_path):
    assert processor_name(tmp_path)
    assert why_plain_kernels(tmp_path) is None, "the library itself finds out"


def test_other_architectures_have_plain_kernels_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    said = "aarch64 has no kernels of theirs"
    assert why_plain_kernels(machine(tmp_path, "Features: asimd\n")) == said


@pytest.mark.parametrize(
    ("cpuinfo", "asked", "expected"),
    [
        (TILES, None, True),
        (TILES, "amx", True),
        (TILES, "avx512vnni", False),
        (TILES.replace("amx_bf16", ""), None, False),
        (NEW, None, False),
        ("", None, False),
    ],
)
def test_tiles_are_another_arithmetic(tmp_path, monkeypatch, cpuinfo, asked, expected):
    monkeypatch.delenv("ENGINEWRIGHT_CPU_KERNELS", raising=False)
    if asked:
        monkeypatch.setenv("ENGINEWRIGHT_CPU_KERNELS", asked)
    assert has_tile_kernels(machine(tmp_path, cpuinfo)) is expected


@pytest.mark.parametrize("name", ["ENGINEWRIGHT_CPU_KERNELS", "ENGINEWRIGHT_HUGE_PAGES"])
def test_a_variable_with_another_value_is_refused(monkeypatch, name):
    for legal in ("", "avx2" if "KERNELS" in name else "1"):
        monkeypatch.setenv(name, legal)
        check_variables()
    monkeypatch.setenv(name, "all")
    with pytest.raises(EnginewrightError, match=rf"{name}=all: one of .*, or unset it"):
        check_variables()


@pytest.mark.parametrize(
    ("cpuinfo", "tuned_on", "expected"),
    [
        (NEW, None, ["native", "plain"]),
        (OLD, None, ["plain", "native"]),
        (OLD, "An Old One", ["native", "plain"]),
        (OLD, "A New One", ["plain", "native"]),
        (NEW, "An Old One", ["native", "plain"]),
    ],
)
def test_the_plan_that_is_preferred(
    tmp_path, make_tiny: Callable[..., Path], cpuinfo, tuned_on, expected
):
    entry = Artifact.open(make_tiny()).manifest.engines[0]
    native = replace(entry, plan="native", library="engine/operators.so", platform="here")
    plain = replace(entry, plan="plain", library=None, platform=None)
    tuning = tuned_on and TuningEntry(tuned_on, 2, {})
    found = in_order([native, plain], tuning or None, machine(tmp_path, cpuinfo))
    assert [each.plan for each in found] == expected
