"""The doctor over artifacts: whole and spoilt ones, on made-up machines; and one check for all."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.kernel_set import KernelEntry, KernelSet, abi_digest
from enginewright.plugins.attention.tensorrt import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import NvidiaEntry, PluginEntry, TuningEntry, seal
from enginewright.runtime.artifact.native_code import remember, this_platform
from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.doctor import load
from enginewright.runtime.doctor.codes import MEANINGS, Code
from enginewright.runtime.doctor.diagnosis import Diagnosis, Machine, diagnose
from enginewright.runtime.doctor.driver import read_driver
from enginewright.runtime.doctor.facts import (
    DriverFacts,
    HostFacts,
    Installed,
    InstalledPlugin,
    described_device,
)
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.header import engine_header
from enginewright.runtime.doctor.installed import read_installed
from enginewright.runtime.errors import (
    ArtifactNotFoundError,
    DeviceError,
    EnginewrightError,
    MissingDependencyError,
)
from enginewright.runtime.options import EngineOptions
from enginewright.runtime.plans import open_plan

GIB = 2**30
VERSION = "1.7.1.116"
ENGINE, INDEX = "engine/model.engine", "engine/kernels/kernels.json"
GPU = DeviceFacts("NVIDIA GeForce RTX 3060", "8.6", "13.0", 12 * GIB, 11 * GIB)
MACHINE = Machine(
    DriverFacts(version="580.65.06", devices=(GPU,)),
    HostFacts(this_platform(), "a processor", 32 * GIB, frozenset({"avx2", "fma", "f16c"})),
    Installed(
        {"tensorrt-rtx-cu13": VERSION, "cuda-bindings": "13.4.4", "onnxruntime": "1.31.1"},
        {"onnxruntime": "1.31"},
        {PLUGIN_NAME: InstalledPlugin(PLUGIN_VERSION, PLUGIN_NAMESPACE, abi_digest())},
    ),
)
NO_DRIVER = replace(MACHINE, driver=DriverFacts(problem="libcuda.so.1 cannot be used"))

Make = Callable[..., Path]


def engine_file(
    size: int = 4096, bits: int = 0x04, version: tuple[int, ...] = (1, 7, 1, 116)
) -> bytes:
    """A file with the header of an engine."""
    return struct.pack("<4s12xQ4B4sB", b"vtrt", size, *version, b"vtrt", bits).ljust(4096, b"\0")


def write_kernels(folder: Path, capabilities: tuple[str, ...], abi: str) -> tuple[str, ...]:
    """An index of kernels; its files, relative to the artifact."""
    config = KernelConfig("float16", 4, 2, 32, 32)
    entries = tuple(
        KernelEntry("decode", config, each, f"{each}.cubin", "0" * 64, "k", 4, 0, 32, 0, 2)
        for each in capabilities
    )
    place = (folder / INDEX).parent
    place.mkdir()
    for entry in entries:
        (place / entry.file).write_bytes(b"cubin")
    KernelSet(place, abi, "triton", entries).write()
    return (INDEX, *(f"engine/kernels/{entry.file}" for entry in entries))


@pytest.fixture
def make_rtx(make_tiny: Make, manifest_writer: Any) -> Make:
    """``make_rtx(content, kernels, abi, **nvidia)``: a TensorRT-RTX artifact for 8.6."""

    def make(
        content: bytes | None = None,
        kernels: tuple[str, ...] = (),
        abi: str = abi_digest(),
        **changes: Any,
    ) -> Path:
        folder = make_tiny()
        (folder / ENGINE).write_bytes(engine_file() if content is None else content)
        files: tuple[str, ...] = (ENGINE,)
        nvidia = NvidiaEntry("tensorrt_rtx", VERSION, ("8.6",), False, (), {}, (), 2 * GIB)
        if kernels:
            files += write_kernels(folder, kernels, abi)
            plugin = PluginEntry(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE, abi, INDEX)
            nvidia = replace(nvidia, plugins=(plugin,))
        entry = replace(
            Artifact.open(folder).manifest.engines[0],
            target="tensorrt_rtx",
            plan="engine",
            precision="fp16",
            model=ENGINE,
            files=files,
            nvidia=replace(nvidia, **changes),
        )
        manifest_writer(folder, entry)
        return folder

    return make


def ask(folder: Path, machine: Machine = MACHINE, **options: Any) -> Diagnosis:
    return diagnose(folder, machine, EngineOptions(**options))


def every(diagnosis: Diagnosis) -> Iterator[Finding]:
    yield from diagnosis.findings
    for plan in diagnosis.plans:
        yield from plan.findings


def found(diagnosis: Diagnosis, code: str) -> Finding:
    [finding] = [each for each in every(diagnosis) if each.code == code]
    return finding


def problems(diagnosis: Diagnosis) -> list[str]:
    return [finding.code for finding in every(diagnosis) if finding.status == "problem"]


def test_a_cpu_artifact_runs_whatever_the_gpu(make_tiny: Make) -> None:
    diagnosis = ask(make_tiny(), NO_DRIVER)
    assert diagnosis.chosen is not None
    assert {each.status for each in every(diagnosis)} == {"ok"}
    assert {each.code for each in every(diagnosis)} == {
        *("manifest_schema", "file_missing", "file_size", "file_altered"),
        *("unknown_target", "platform", "untrusted_code", "package_missing", "library_version"),
        *("cpu_features", "host_memory"),
    }


@pytest.mark.parametrize(
    ("features", "tuned_on", "order"),
    [
        ({"avx2", "fma", "f16c"}, None, ["native", "plain"]),
        ({"avx2", "f16c"}, None, ["plain", "native"]),
        ({"avx2", "f16c"}, "a processor", ["native", "plain"]),
        ({"avx2", "f16c"}, "another one", ["plain", "native"]),
        (None, None, ["native", "plain"]),
    ],
)
def test_plans_come_as_a_load_tries_them(
    make_tiny: Make,
    manifest_writer: Any,
    features: set[str] | None,
    tuned_on: str | None,
    order: list[str],
) -> None:
    folder = make_tiny()
    (folder / "engine/operators.so").write_bytes(b"library")
    plain = Artifact.open(folder).engine()
    native = replace(plain, plan="native", library="engine/operators.so", platform=this_platform())
    native = replace(native, files=(*plain.files, "engine/operators.so"))
    tuning = None if tuned_on is None else TuningEntry(tuned_on, 2, {})
    engines = (native, replace(plain, plan="plain"))
    manifest_writer(folder, native, engines=engines, tuning=tuning)
    known = None if features is None else frozenset(features)
    host = replace(MACHINE.host, platform="linux-x86_64", features=known)
    found = ask(folder, replace(MACHINE, host=host), allow_native_code=True)
    assert [plan.plan for plan in found.plans] == order
    if this_platform() == host.platform:
        assert found.as_data()["plan"] == order[0]


def test_an_rtx_artifact_on_its_machine(make_rtx: Make) -> None:
    diagnosis = ask(make_rtx(kernels=("8.6", "12.0")), allow_native_code=True)
    assert diagnosis.chosen is not None
    assert {each.status for each in every(diagnosis)} == {"ok"}
    device = {"no_driver", "no_device", "driver_version", "capability", "out_of_memory"}
    engine = {"engine_refused", "plugin_abi", "plugin_kernels"}
    assert device | engine <= {each.code for each in every(diagnosis)}
    assert diagnosis.as_data()["plan"] == "engine"


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (NO_DRIVER, "no_driver"),
        (replace(MACHINE, driver=DriverFacts(version="580.1")), "no_device"),
        (
            replace(MACHINE, driver=DriverFacts(devices=(replace(GPU, cuda="12.4"),))),
            "driver_version",
        ),
        (
            replace(MACHINE, driver=DriverFacts(devices=(replace(GPU, free_memory=GIB),))),
            "out_of_memory",
        ),
        (replace(MACHINE, installed=Installed()), "package_missing"),
        (
            replace(
                MACHINE,
                installed=Installed({"tensorrt-rtx": "1.8.0", "cuda-bindings": "13.0"}),
            ),
            "library_version",
        ),
    ],
)
def test_what_the_machine_lacks(make_rtx: Make, machine: Machine, code: str) -> None:
    diagnosis = ask(make_rtx(), machine)
    assert diagnosis.chosen is None
    assert problems(diagnosis) == [code]
    finding = found(diagnosis, code)
    assert finding.needed
    assert finding.action


@pytest.mark.parametrize(
    ("capability", "wrong"),
    [("8.6", []), ("12.0", ["capability"]), ("8.9", ["capability", "plugin_kernels"])],
)
def test_capability_of_engine_and_kernels(make_rtx: Make, capability: str, wrong: list[str]):
    machine = replace(MACHINE, driver=DriverFacts(devices=(replace(GPU, capability=capability),)))
    diagnosis = ask(make_rtx(kernels=("8.6", "12.0")), machine, allow_native_code=True)
    assert problems(diagnosis) == wrong


def test_kernels_of_another_version(make_rtx: Make) -> None:
    diagnosis = ask(make_rtx(kernels=("8.6",), abi="0" * 16), allow_native_code=True)
    assert problems(diagnosis) == ["plugin_abi", "plugin_kernels"]
    assert "0" * 12 in found(diagnosis, "plugin_abi").needed


def test_kernels_of_others_need_a_word(make_rtx: Make) -> None:
    folder = make_rtx(kernels=("8.6",))
    finding = found(ask(folder), "untrusted_code")
    assert finding.status == "problem"
    assert "--allow-native-code" in finding.found
    assert problems(ask(folder, allow_native_code=False)) == ["untrusted_code"]
    for name, entry in Artifact.open(folder).manifest.files.items():
        if name.startswith("engine/kernels/"):
            remember(entry.sha256)
    assert not problems(ask(folder))


def test_a_described_device_needs_no_gpu_and_no_packages(make_rtx: Make) -> None:
    folder = make_rtx(kernels=("8.6",))
    bare = replace(NO_DRIVER, installed=replace(MACHINE.installed, versions={}))

    def on(device: str) -> Diagnosis:
        return ask(folder, replace(bare, driver=described_device(device)), allow_native_code=True)

    diagnosis = on("8.6:24GiB")
    assert diagnosis.chosen is not None
    assert diagnosis.described
    finding = found(diagnosis, "package_missing")
    assert finding.status == "warning"
    assert finding.found.startswith("on this machine, which is not the device's: ")
    assert "described device" in found(diagnosis, "capability").found
    assert problems(on("8.6:1GiB")) == ["out_of_memory"]
    assert found(on("8.6"), "out_of_memory").status == "warning"
    assert problems(on("9.0:80GiB")) == ["capability", "plugin_kernels"]


def test_what_this_machine_trusts_says_nothing_of_a_described_device(make_rtx: Make) -> None:
    diagnosis = ask(make_rtx(kernels=("8.6",)), replace(MACHINE, driver=described_device("8.6")))
    finding = found(diagnosis, "untrusted_code")
    assert finding.status == "warning"
    assert finding.found.startswith("on this machine, which is not the device's: ")
    assert diagnosis.chosen is not None


def test_lower_limits_need_less(make_rtx: Make) -> None:
    folder = make_rtx()
    small = replace(GPU, free_memory=2 * GIB + 512 * 2**20 + 2**20)
    machine = replace(MACHINE, driver=DriverFacts(version="1", devices=(small,)))
    finding = found(ask(folder, machine), "out_of_memory")
    assert finding.action.startswith("max_batch=3 fits")
    assert not problems(ask(folder, machine, max_batch=3))
    assert not problems(ask(folder, machine, max_context=300))
    with pytest.raises(EnginewrightError, match="max_batch=5 is not legal"):
        ask(folder, machine, max_batch=5)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (engine_file(), "ok"),
        (engine_file(size=5000), "problem"),
        (engine_file(bits=0x08), "warning"),
        (engine_file(version=(1, 6, 0, 1)), "warning"),
        (b"not an engine", "warning"),
        (b"", "warning"),
    ],
)
def test_the_engines_header(make_rtx: Make, content: bytes, status: str) -> None:
    assert found(ask(make_rtx(content)), "engine_refused").status == status


def test_the_header_of_a_real_engine(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "model.engine"
    path.write_bytes(built(trt, trt.ComputeCapability.SM86, trt.ComputeCapability.SM120))
    version = read_installed().versions["tensorrt-rtx-cu13"]
    nvidia = NvidiaEntry("tensorrt_rtx", version, ("8.6", "12.0"), False, (), {}, (), 1)
    finding = engine_header(path, nvidia)
    assert finding.status == "ok"
    assert version in finding.found
    assert engine_header(path, replace(nvidia, capabilities=("8.9",))).status == "warning"
    path.write_bytes(path.read_bytes()[:-1])
    assert engine_header(path, nvidia).status == "problem"


def built(trt: Any, *capabilities: Any) -> bytes:
    """An engine that adds a tensor to itself."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    tensor = network.add_input("x", trt.float16, (8, 8))
    total = network.add_elementwise(tensor, tensor, trt.ElementWiseOperation.SUM)
    network.mark_output(total.get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, each in enumerate(capabilities):
        config.set_compute_capability(each, index)
    return bytes(builder.build_serialized_network(network, config))


def test_a_missing_and_a_truncated_file(make_tiny: Make) -> None:
    folder = make_tiny()
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"")
    diagnosis = ask(folder)
    assert diagnosis.chosen is None
    assert problems(diagnosis) == ["file_missing", "file_size"]
    assert "tokenizer.json" in found(diagnosis, "file_missing").found
    assert "chat_template.jinja (0 bytes" in found(diagnosis, "file_size").found


def test_an_altered_small_file(make_tiny: Make) -> None:
    folder = make_tiny()
    template = folder / "chat_template.jinja"
    template.write_bytes(template.read_bytes().swapcase())
    diagnosis = ask(folder)
    assert problems(diagnosis) == ["file_altered"]
    assert diagnosis.chosen is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda text: text.replace('"tiny"', '"tinier"'), "manifest_altered"),
        (lambda text: "{", "manifest_unreadable"),
        (lambda text: seal(json.loads(text) | {"schema_version": 99}), "manifest_schema"),
        (lambda text: seal(json.loads(text) | {"engines": 3}), "manifest_unreadable"),
        (
            lambda text: seal(json.loads(text) | {"files": {"../x": {"size": 1, "sha256": ""}}}),
            "manifest_unreadable",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used(make_tiny: Make, change: Any, code: str) -> None:
    folder = make_tiny()
    manifest = folder / "manifest.json"
    manifest.write_text(change(manifest.read_text()))
    diagnosis = ask(folder)
    assert problems(diagnosis) == [code]
    assert diagnosis.chosen is None
    assert not diagnosis.plans


def test_no_artifact_at_all(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no such folder"):
        ask(tmp_path / "nothing")
    with pytest.raises(ArtifactNotFoundError, match=r"holds no manifest\.json"):
        ask(tmp_path)


def test_an_unknown_target(make_tiny: Make, manifest_writer: Any) -> None:
    folder = make_tiny()
    manifest_writer(folder, replace(Artifact.open(folder).manifest.engines[0], target="abacus"))
    finding = found(ask(folder), "unknown_target")
    assert (finding.status, finding.found) == ("problem", "abacus")
    assert "cpu" in finding.needed


def test_the_first_plan_that_runs_is_chosen(make_tiny: Make, manifest_writer: Any) -> None:
    folder = make_tiny()
    library = "engine/operators.so"
    (folder / library).write_bytes(b"code")
    plain = Artifact.open(folder).manifest.engines[0]
    native = replace(plain, plan="native", files=(*plain.files, library), library=library)
    foreign = replace(native, plan="foreign", platform="plan9-mips")
    native = replace(native, platform=this_platform())
    manifest_writer(folder, plain, engines=(foreign, native, plain))
    diagnosis = ask(folder)
    assert [(plan.plan, plan.runs) for plan in diagnosis.plans] == [
        ("foreign", False),
        ("native", False),
        ("test", True),
    ]
    assert diagnosis.chosen is diagnosis.plans[2]
    assert [plan.problems[0].code for plan in diagnosis.plans[:2]] == ["platform", "untrusted_code"]
    allowed = ask(folder, allow_native_code=True).chosen
    assert allowed is not None
    assert allowed.plan == "native"


def test_a_plan_of_another_target_is_chosen_where_the_first_does_not_run(
    make_rtx: Make, manifest_writer: Any
):
    """As a load, which tries the engines of a set of variants in their order."""
    folder = make_rtx()
    rtx = Artifact.open(folder).manifest.engines[0]
    cpu = replace(rtx, target="cpu", plan="plain", nvidia=None)
    manifest_writer(folder, rtx, engines=(rtx, cpu))
    diagnosis = ask(folder, NO_DRIVER)
    assert [plan.runs for plan in diagnosis.plans] == [False, True]
    assert diagnosis.chosen is diagnosis.plans[1]


def test_a_load_asks_the_same(make_rtx: Make) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.bindings")
    versions = read_installed().versions
    folder = make_rtx(kernels=("8.6",), library_version=versions["tensorrt-rtx-cu13"])
    artifact = Artifact.open(folder)
    [entry] = artifact.manifest.engines
    one_row = replace(GPU, free_memory=2 * GIB + 512 * 2**20 + 2**20)
    load.check_device(artifact, entry, GPU)
    load.check_device(artifact, entry, one_row)
    for device, code in (
        (replace(GPU, capability="8.9"), "capability"),
        (replace(GPU, cuda="12.0"), "driver_version"),
        (replace(GPU, free_memory=2 * GIB), "out_of_memory"),
    ):
        with pytest.raises(DeviceError) as error:
            load.check_device(artifact, entry, device)
        assert error.value.code == code
        assert str(folder) in str(error.value)
    assert entry.nvidia is not None
    foreign = replace(entry, nvidia=replace(entry.nvidia, library_version="9.9.9"))
    with pytest.raises(DeviceError) as error:
        load.check_device(artifact, foreign, GPU)
    assert error.value.code == "library_version"


def test_a_load_without_the_package_names_it(make_rtx: Make) -> None:
    if "tensorrt-cu13" in read_installed().versions:
        pytest.skip("TensorRT is installed here")
    artifact = Artifact.open(make_rtx())
    [entry] = artifact.manifest.engines
    assert entry.nvidia is not None
    other = replace(entry, target="tensorrt", nvidia=replace(entry.nvidia, library="tensorrt"))
    with pytest.raises(MissingDependencyError, match=r"enginewright\[tensorrt\]"):
        load.check_device(artifact, other, GPU)


def test_every_code_has_a_meaning() -> None:
    codes = {text for part in get_args(Code) for text in get_args(part)}
    assert set(MEANINGS) == codes


@pytest.mark.skipif(bool(read_driver().devices), reason="this machine has a GPU")
def test_a_load_of_plans_that_no_device_takes_keeps_the_code(make_rtx: Make, manifest_writer: Any):
    pytest.importorskip("cuda.bindings")
    folder = make_rtx()
    [entry] = Artifact.open(folder).manifest.engines
    manifest_writer(folder, entry, engines=(entry, replace(entry, plan="second")))
    with pytest.raises(DeviceError) as error:
        open_plan(Artifact.open(folder))
    assert error.value.code in ("no_driver", "no_device")
