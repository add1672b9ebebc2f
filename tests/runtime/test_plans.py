"""Which of an artifact's plans runs, and why another one does not.

The artifact has two plans of the same model: "native" with a library, which registers nothing, and
"plain" without one.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.manifest import TuningEntry
from enginewright.runtime.artifact.native_code import remember, this_platform
from enginewright.runtime.errors import IntegrityError, NativeCodeError, TargetError
from enginewright.runtime.plans import open_plan
from enginewright.runtime.processor import CPU_KERNELS, processor_name

LIBRARY = "engine/operators.so"
GREEDY = SamplingParams(temperature=0, max_tokens=8)
_SOURCE = """
extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }
extern "C" const char* EnginewrightCpuKernels(const char*) { return "avx2 rows=avx2"; }
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A library that ONNX Runtime loads, which says that its processor has AVX2."""
    compiler = next(
        (path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), ""
    )
    if not compiler:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("library")
    (folder / "made.cpp").write_text(_SOURCE)
    command = [compiler, "-shared", "-fPIC", "made.cpp", "-o", "made.so"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "made.so").read_bytes()


@pytest.fixture
def make(make_tiny: Callable[..., Path], manifest_writer: Callable[..., Any]) -> Any:
    """``make(library, platform)``: an artifact of two plans with a library of those bytes."""

    def make(content: bytes, platform: str | None = None) -> Path:
        folder = make_tiny()
        (folder / LIBRARY).write_bytes(content)
        entry = Artifact.open(folder).manifest.engines[0]
        native = replace(
            entry,
            plan="native",
            files=(*entry.files, LIBRARY),
            library=LIBRARY,
            platform=platform or this_platform(),
        )
        plain = replace(entry, plan="plain")
        manifest_writer(folder, native, engines=(native, plain))
        return folder

    return make


def chosen(folder: Path, **options: Any) -> str:
    """The plan that runs; its engine is closed."""
    engine, entry = open_plan(Artifact.open(folder), **options)
    engine.close()
    return entry.plan


def tuned(folder: Path, manifest_writer: Any, processor: str) -> Path:
    """The artifact, with its native plan tuned for AMX on that processor."""
    native, plain = Artifact.open(folder).manifest.engines
    held = replace(native, cpu_kernels="amx")
    times = {"native": {"amx": {"decode": 1.0}}}
    tuning = TuningEntry(processor, 2, {}, times)
    manifest_writer(folder, held, engines=(held, plain), tuning=tuning)
    return folder


def compiled_here(folder: Path) -> None:
    remember(Artifact.open(folder).manifest.files[LIBRARY].sha256)


def test_a_library_that_was_compiled_here_runs(make, library, caplog):
    folder = make(library)
    compiled_here(folder)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder) == "native"
    assert not caplog.records


@pytest.mark.parametrize(
    ("here", "asked", "said"),
    [
        (
            True,
            "",
            "plan native: its kernels (amx) were chosen on a processor of this name, but this "
            "one lacks them; avx2 run instead",
        ),
        (True, "avx2", ""),
        (
            False,
            "",
            "plan native: its kernels (amx) were chosen on another processor, Another One; "
            "the best that this one has run instead",
        ),
    ],
)
def test_kernels_that_are_not_those_chosen_are_said(
    make, library, manifest_writer, monkeypatch, caplog, here, asked, said
):
    monkeypatch.setenv(CPU_KERNELS, asked)
    name = processor_name() if here else "Another One"
    folder = tuned(make(library), manifest_writer, name)
    compiled_here(folder)
    with caplog.at_level(logging.INFO):
        engine, _ = open_plan(Artifact.open(folder))
    assert engine.describe().cpu_kernels == "avx2"
    engine.close()
    assert caplog.messages == ([said] if said else [])


@pytest.mark.parametrize("other", [False, True])
def test_an_unknown_library_is_passed_over_and_that_is_said(make, library, caplog, other):
    folder = make(library)
    if other:
        remember("0" * 64)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder) == "plain"
    (record,) = caplog.records
    message = record.getMessage()
    assert f"plan native: {LIBRARY} was not compiled on this machine" in message
    assert "allow_native_code=True" in message
    assert str(folder) in message
    assert message.endswith("plan plain runs instead")


def test_what_others_may_write_to_does_not_make_it_known(make, library):
    folder = make(library)
    compiled_here(folder)
    cache = cache_folder()
    assert cache is not None
    cache.chmod(0o777)
    assert chosen(folder) == "plain"
    cache.chmod(0o700)
    assert chosen(folder) == "native"


def test_the_user_may_allow_any_library(make, library, caplog):
    with caplog.at_level(logging.WARNING):
        assert chosen(make(library), allow_native_code=True) == "native"
    assert not caplog.records


def test_the_user_may_forbid_even_a_known_one(make, library, caplog):
    folder = make(library)
    compiled_here(folder)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder, allow_native_code=False) == "plain"
    assert "native code is not allowed (allow_native_code=False)" in caplog.text


@pytest.mark.parametrize("allow", [None, True])
def test_a_library_for_another_platform_is_passed_over(make, library, caplog, allow):
    folder = make(library, "plan9-mips")
    compiled_here(folder)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder, allow_native_code=allow) == "plain"
    assert f"is for plan9-mips, this machine is {this_platform()}" in caplog.text


def test_a_library_that_does_not_load_is_passed_over(make, caplog):
    folder = make(b"no library at all")
    with caplog.at_level(logging.WARNING):
        assert chosen(folder, allow_native_code=True) == "plain"
    (record,) = caplog.records
    assert f"{folder / LIBRARY} cannot be loaded" in record.getMessage()
    with pytest.raises(TargetError, match="cannot be loaded"):
        chosen(folder, allow_native_code=True, plan="native")


@pytest.fixture
def _old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset({"sse2", "avx"})
    monkeypatch.setattr("enginewright.runtime.processor.platform.machine", lambda: "x86_64")
    monkeypatch.setattr("enginewright.runtime.processor.processor_flags", lambda root: flags)


@pytest.mark.usefixtures("_old_processor")
def test_a_plan_that_the_processor_puts_behind_another_is_told(make, library, caplog):
    folder = make(library)
    compiled_here(folder)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder) == "plain"
        (record,) = caplog.records
        assert record.getMessage() == (
            "plan native: its operators would run in plain C++ (this processor has no avx2, f16c, "
            "fma), which makes prompts slower; plan='native' runs it all the same; plan plain "
            "runs instead"
        )
        caplog.clear()
        assert chosen(folder, plan="native") == "native"
        assert chosen(folder, plan="plain") == "plain"
        assert not caplog.records


@pytest.mark.usefixtures("_old_processor")
def test_what_could_not_run_anyway_is_told_with_that_reason(make, library, caplog):
    with caplog.at_level(logging.WARNING):
        assert chosen(make(library)) == "plain"
    (record,) = caplog.records
    assert f"plan native: {LIBRARY} was not compiled on this machine" in record.getMessage()


@pytest.mark.usefixtures("_old_processor")
def test_what_the_build_timed_on_the_processor_stays_first(
    make, library, caplog, monkeypatch, manifest_writer
):
    folder = make(library)
    compiled_here(folder)
    monkeypatch.setattr("enginewright.runtime.plans.processor_name", lambda root: "An Old One")
    native, plain = Artifact.open(folder).manifest.engines
    tuning = TuningEntry("An Old One", 2, {})
    manifest_writer(folder, native, engines=(native, plain), tuning=tuning)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder) == "native"
        assert not caplog.records
        manifest_writer(folder, plain, engines=(plain, native), tuning=tuning)
        assert chosen(folder) == "plain"
        assert not caplog.records, "it is the artifact's first"


def test_a_plan_that_was_asked_for_and_may_not_run_is_an_error(make, library):
    folder = make(library)
    with pytest.raises(TargetError, match="was not compiled on this machine") as caught:
        chosen(folder, plan="native")
    assert str(folder) in str(caught.value)
    assert not isinstance(caught.value, NativeCodeError)
    with pytest.raises(TargetError, match="not allowed"):
        chosen(folder, plan="native", allow_native_code=False)
    assert chosen(folder, plan="native", allow_native_code=True) == "native"


def test_a_plan_that_was_asked_for_runs_though_another_is_preferred(make, library, caplog):
    folder = make(library)
    compiled_here(folder)
    with caplog.at_level(logging.WARNING):
        assert chosen(folder, plan="plain") == "plain"
    assert not caplog.records


@pytest.mark.parametrize("target", [None, "cpu"])
def test_an_unknown_plan_is_refused_with_those_there_are(make, library, target):
    with pytest.raises(TargetError, match=r"no plan 'nonsense' .* holds: native, plain"):
        chosen(make(library), plan="nonsense", target=target)


def test_where_no_plan_runs_every_reason_is_given(make, library, manifest_writer):
    folder = make(library)
    native = Artifact.open(folder).manifest.engines[0]
    foreign = replace(native, plan="foreign", platform="plan9-mips")
    manifest_writer(folder, native, engines=(native, foreign))
    with pytest.raises(TargetError) as caught:
        chosen(folder)
    assert "plan native: engine/operators.so was not compiled" in str(caught.value)
    assert "plan foreign: engine/operators.so is for plan9-mips" in str(caught.value)


@pytest.mark.parametrize("verify", ["always", "cached", "never"])
def test_a_library_whose_bytes_are_others_is_never_loaded(make, library, verify):
    folder = make(library)
    compiled_here(folder)
    (folder / LIBRARY).write_bytes(library[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"operators\.so"):
        Artifact.open(folder, verify)


@pytest.mark.parametrize("verify", ["cached", "never"])
def test_a_large_library_of_another_name_is_hashed_all_the_same(
    make, library, manifest_writer, verify
):
    """What is trusted is the hash that the manifest states, so the bytes must have it."""
    folder = make(library)
    native, plain = Artifact.open(folder).manifest.engines
    hidden = folder / "engine" / "operators.bin"
    hidden.write_bytes(library + bytes(17 * 2**20))
    renamed = replace(native, library="engine/operators.bin", files=("engine/operators.bin",))
    manifest_writer(folder, renamed, engines=(renamed, plain))
    hidden.write_bytes(library + b"x" + bytes(17 * 2**20 - 1))
    with pytest.raises(IntegrityError, match=r"operators\.bin"):
        Artifact.open(folder, verify)


def test_both_plans_generate_the_same(make, library, tiny_model):
    folder = make(library)
    for plan, allow in (("native", True), ("plain", None)):
        with LLM(folder, plan=plan, allow_native_code=allow) as llm:
            assert llm.plan == plan
            (output,) = llm.generate("abc", GREEDY)
        found = list(output.outputs[0].token_ids)
        assert found
        expected = tiny_model.continue_greedily(output.prompt_token_ids, 8)
        assert found == expected[: len(found)]
    with LLM(folder) as llm:
        assert llm.plan == "plain"
    with pytest.raises(TargetError, match="holds: native, plain"):
        LLM(folder, plan="nonsense")
