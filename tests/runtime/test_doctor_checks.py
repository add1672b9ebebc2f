"""The checks of the doctor over made-up facts: what each says, and where it draws the line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from enginewright.runtime.artifact.manifest import (
    EngineEntry,
    KVEntry,
    LimitsEntry,
    NvidiaEntry,
    PluginEntry,
    StepsEntry,
)
from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.doctor import checks
from enginewright.runtime.doctor.facts import (
    DriverFacts,
    HostFacts,
    Installed,
    InstalledPlugin,
    described_device,
)
from enginewright.runtime.doctor.findings import Finding, refuse
from enginewright.runtime.doctor.host_checks import cpu_findings, platform_finding
from enginewright.runtime.doctor.needs import Needs, kv_bytes_per_token, needs
from enginewright.runtime.errors import DeviceError, EnginewrightError, MissingDependencyError

GIB = 2**30
PLUGIN = PluginEntry("Attention", "1", "enginewright", "abi-of-engine", "engine/kernels.json")
NVIDIA = NvidiaEntry("tensorrt_rtx", "1.7.1.116", ("8.6", "12.0"), False, (), {}, (), 2 * GIB)
ENTRY = EngineEntry(
    target="tensorrt_rtx",
    plan="engine",
    precision="fp16",
    fingerprint="",
    model="engine/model.engine",
    files=("engine/model.engine",),
    io=(),
    vocab_size=1000,
    kv=KVEntry("slots", 4, 2, 64, "float16", 1024),
    limits=LimitsEntry(1024, 8),
    steps=StepsEntry(8, 8, 1),
    batch_invariant=False,
    nvidia=NVIDIA,
)
GPU = DeviceFacts("A GPU", "8.6", "13.0", 12 * GIB, 11 * GIB)
OTHER = replace(GPU, name="An older GPU", capability="7.5")
RTX = Installed({"tensorrt-rtx-cu13": "1.7.1.116", "cuda-bindings": "13.4.4"})


def by_code(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = list(findings)
    named = {each.code: each for each in found}
    assert len(named) == len(found)
    return {str(code): finding for code, finding in named.items()}


@pytest.mark.parametrize(
    ("capabilities", "later", "found", "runs"),
    [
        (("8.6",), False, "8.6", True),
        (("8.6",), False, "8.9", False),
        (("8.6",), True, "8.9", True),
        (("8.9", "12.0"), True, "9.0", False),
        (("8.9", "12.0"), True, "10.0", False),
        (("8.9", "12.0"), True, "12.1", True),
        (("8.6", "8.9"), True, "8.0", False),
        (("9.0",), True, "10.0", True),
    ],
)
def test_later_means_above_the_highest(capabilities: Any, later: bool, found: str, runs: bool):
    nvidia = replace(NVIDIA, capabilities=capabilities, later=later)
    finding = checks.capability(nvidia, replace(GPU, capability=found))
    assert (finding.status == "ok") is runs
    if not runs:
        assert finding.needed == ", ".join(capabilities) + (" or later" if later else "")
        assert found in finding.found


@pytest.mark.parametrize(
    ("version", "compatible", "status"),
    [
        ("1.7.1.116", False, "ok"),
        ("1.7.1.200", False, "ok"),
        ("1.7.2", False, "problem"),
        ("1.8.0", False, "problem"),
        ("1.8.0", True, "ok"),
        ("1.6.0", True, "problem"),
        ("2.0.0", True, "problem"),
    ],
)
def test_an_engine_runs_with_the_version_that_built_it(version: str, compatible: bool, status: str):
    installed = replace(RTX, versions={**RTX.versions, "tensorrt-rtx-cu13": version})
    found = by_code(checks.package_findings(ENTRY, installed, version_compatible=compatible))
    assert found["package_missing"].status == "ok"
    finding = found["library_version"]
    assert finding.status == status
    if status == "problem":
        assert "pip install 'tensorrt-rtx-cu13==1.7.1.116'" in finding.action


@pytest.mark.parametrize(
    ("library", "missing", "extra"),
    [
        ("tensorrt_rtx", "tensorrt-rtx-cu13, cuda-bindings", "rtx"),
        ("tensorrt", "tensorrt-cu13, cuda-bindings", "tensorrt"),
        ("onnxruntime", "onnxruntime-gpu, cuda-bindings", "cuda"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(library: Any, missing: str, extra: str):
    entry = replace(ENTRY, nvidia=replace(NVIDIA, library=library))
    found = by_code(checks.package_findings(entry, Installed()))
    assert found.keys() == {"package_missing"}
    assert missing in found["package_missing"].found
    assert found["package_missing"].action == f"pip install 'enginewright[{extra}]'"


@pytest.mark.parametrize(("version", "status"), [("1.31.1", "ok"), ("1.30.9", "problem")])
def test_onnxruntime_may_be_newer_but_not_older(version: str, status: str):
    entry = replace(ENTRY, target="cpu", nvidia=None)
    installed = Installed({"onnxruntime": version}, {"onnxruntime": "1.31"})
    assert by_code(checks.package_findings(entry, installed))["library_version"].status == status


@pytest.mark.parametrize(("version", "status"), [("1.32.0", "ok"), ("1.31.1", "problem")])
def test_the_cuda_target_may_ask_for_more(version: str, status: str):
    nvidia = replace(NVIDIA, library="onnxruntime", library_version="1.32")
    installed = Installed(
        {"onnxruntime-gpu": version, "cuda-bindings": "13.4"}, {"onnxruntime-gpu": "1.31"}
    )
    found = by_code(checks.package_findings(replace(ENTRY, nvidia=nvidia), installed))
    assert found["library_version"].status == status


def test_no_driver_ends_the_questions_about_it():
    found = by_code(checks.driver_findings(NVIDIA, DriverFacts(problem="no libcuda"), RTX))
    assert found.keys() == {"no_driver"}
    assert found["no_driver"].status == "problem"
    assert "no libcuda" in found["no_driver"].found


def test_a_driver_without_a_gpu():
    found = by_code(checks.driver_findings(NVIDIA, DriverFacts(version="580.1"), RTX))
    assert {code: each.status for code, each in found.items()} == {
        "no_driver": "ok",
        "no_device": "problem",
    }
    assert "CUDA_VISIBLE_DEVICES" in found["no_device"].action


@pytest.mark.parametrize(
    ("cuda", "status"), [("13.0", "ok"), ("14.2", "ok"), ("12.8", "problem"), ("", "warning")]
)
def test_the_driver_runs_the_packages_cuda(cuda: str, status: str):
    finding = checks.driver_version(replace(GPU, cuda=cuda), RTX)
    assert finding.status == status
    if status == "problem":
        assert finding.needed == "CUDA 13 (driver 580 or newer)"


def test_another_gpu_that_runs_it_is_pointed_out():
    driver = DriverFacts(version="580.1", devices=(OTHER, GPU))
    finding = by_code(checks.driver_findings(NVIDIA, driver, RTX))["no_device"]
    assert finding.status == "warning"
    assert "0: An older GPU" in finding.found
    assert "CUDA_VISIBLE_DEVICES=1" in finding.action
    assert checks.capability(NVIDIA, OTHER).status == "problem"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "ok"),
        ({"abi": "another"}, "problem"),
        ({"version": "2"}, "problem"),
        ({"namespace": "other"}, "problem"),
        ({"name": "Other"}, "problem"),
    ],
)
def test_the_plugin_must_mean_the_same(changes: dict[str, str], status: str):
    plugins = {"Attention": InstalledPlugin("1", "enginewright", "abi-of-engine")}
    finding = checks.plugin_abi(replace(PLUGIN, **changes), Installed(plugins=plugins))
    assert finding.status == status


@pytest.mark.parametrize(
    ("held", "status"),
    [(frozenset({"8.6", "12.0"}), "ok"), (frozenset({"8.9"}), "problem"), (None, "problem")],
)
def test_kernels_run_on_their_own_capability_only(held: frozenset[str] | None, status: str):
    assert checks.plugin_kernels(PLUGIN, held, GPU).status == status


def test_what_an_engine_needs_is_the_sum_of_its_parts():
    found = needs(ENTRY, {})
    assert found.weights == 2 * GIB
    assert found.row_cache == 1024 * (2 * 4 * 2 * 64 * 2)
    assert found.row_logits == 4000
    assert found.total == 2 * GIB + found.workspace + 8 * (found.row_cache + 4000)


def test_a_built_block_is_not_divided():
    paged = replace(ENTRY, kv=KVEntry("paged", 4, 2, 64, "int8", 32), limits=LimitsEntry(33, 1))
    assert needs(paged, {}).row_cache == 64 * (2 * 4 * 2 * 64)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 4), ("bfloat16", 2), ("int8", 1), ("float8_e4m3fn", 1), ("complex64", None)],
)
def test_bytes_of_a_token_by_dtype(dtype: str, size: int | None):
    found = kv_bytes_per_token(KVEntry("slots", 1, 1, 1, dtype))
    assert found == (None if size is None else 2 * size)


@pytest.mark.parametrize(
    ("free", "status", "said"),
    [
        (8 * GIB, "ok", ""),
        (5 * GIB, "problem", "max_batch=2 fits"),
        (3 * GIB + 1, "problem", "not even one row"),
        (1 * GIB, "problem", "the weights alone do not fit"),
        (0, "warning", ""),
    ],
)
def test_device_memory_says_what_would_fit(free: int, status: str, said: str):
    takes = Needs(weights=2 * GIB, row_cache=GIB - 4, row_logits=4, rows=4, workspace=GIB)
    finding = checks.device_memory(takes, replace(GPU, free_memory=free))
    assert finding.status == status
    assert said in finding.action


@pytest.mark.parametrize(
    ("available", "status"),
    [(8 * GIB, "ok"), (5 * GIB, "warning"), (3 * GIB + 1, "problem"), (None, "warning")],
)
def test_host_memory_forbids_only_what_cannot_start(available: int | None, status: str):
    takes = Needs(weights=2 * GIB, row_cache=GIB - 4, row_logits=4, rows=4, workspace=GIB)
    host = HostFacts("linux-x86_64", "a processor", available, frozenset({"avx2"}))
    assert by_code(cpu_findings(ENTRY, host, takes))["host_memory"].status == status


@pytest.mark.parametrize(
    ("platform", "features", "library", "status", "said"),
    [
        ("linux-x86_64", {"avx2", "fma", "f16c"}, "operators.so", "ok", "a processor, with AVX2"),
        ("linux-x86_64", None, "operators.so", "ok", "its features are not known"),
        ("linux-x86_64", {"avx2"}, "operators.so", "warning", "has no f16c, fma"),
        ("linux-x86_64", {"avx2"}, None, "ok", "this plan needs none of our operators"),
        ("linux-aarch64", None, "operators.so", "warning", "aarch64 has no kernels"),
    ],
)
def test_operators_without_kernels_of_their_own_are_told(
    platform: str, features: set[str] | None, library: str | None, status: str, said: str
):
    known = None if features is None else frozenset(features)
    host = HostFacts(platform, "a processor", 8 * GIB, known)
    entry = replace(ENTRY, plan="native", library=library)
    found = by_code(cpu_findings(entry, host, Needs(1, 1, 1, 1)))["cpu_features"]
    assert found.status == status
    assert said in found.found
    assert ("plan='native' runs this one" in found.action) == (status == "warning")


def test_a_plan_for_another_platform():
    host = HostFacts("linux-x86_64", "a processor")
    assert platform_finding(ENTRY, host).status == "ok"
    assert platform_finding(replace(ENTRY, platform="linux-x86_64"), host).status == "ok"
    finding = platform_finding(replace(ENTRY, platform="linux-aarch64"), host)
    assert (finding.status, finding.needed) == ("problem", "linux-aarch64")


def test_refusing_raises_the_first_problem_with_its_code():
    good = Finding("capability", "ok", "fine")
    bad = Finding("out_of_memory", "problem", "2 GiB free", "3 GiB", "free some")
    refuse("here", [good, Finding("no_device", "warning", "two GPUs")])
    with pytest.raises(
        DeviceError, match=r"^here: 2 GiB free; needed: 3 GiB\. free some$"
    ) as error:
        refuse("here", [good, bad, Finding("capability", "problem", "later")])
    assert error.value.code == "out_of_memory"
    with pytest.raises(MissingDependencyError, match="pip install"):
        refuse("here", checks.package_findings(ENTRY, Installed()))


@pytest.mark.parametrize(
    ("text", "capability", "memory"),
    [
        ("8.6", "8.6", 0),
        ("8.6:24GiB", "8.6", 24 * GIB),
        (" 12.0:512MB ", "12.0", 512_000_000),
        ("8.9:1.5GB", "8.9", 1_500_000_000),
    ],
)
def test_a_device_is_described_by_capability_and_memory(text: str, capability: str, memory: int):
    facts = described_device(text)
    [device] = facts.devices
    assert facts.described
    assert (device.capability, device.free_memory, device.total_memory) == (
        capability,
        memory,
        memory,
    )


@pytest.mark.parametrize("text", ["", "RTX 3060", "8", "8.6:", "8.6:24", "8.6:-1GiB", "8.65"])
def test_what_describes_no_device_is_refused(text: str):
    with pytest.raises(EnginewrightError, match=r"legal is a compute capability.*8\.6:24GiB"):
        described_device(text)


@pytest.mark.parametrize("text", ["8.6:0GiB", "8.6:1MiB", "8.6:99999GiB", f"8.6:{'9' * 300}GB"])
def test_absurd_memory_is_refused(text: str):
    with pytest.raises(EnginewrightError, match="legal is 256MiB to 4096GiB"):
        described_device(text)
