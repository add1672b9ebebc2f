"""The kernels as C++ source, and the launches of the plugin in C++: the same as launch.py's.

What is launched is seen by a library that stands in for the driver's.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pytest

from enginewright.plugins.attention.cuda import config as configs
from enginewright.plugins.attention.cuda import embed, launch
from enginewright.plugins.attention.cuda.config import KERNELS, KernelConfig, tile
from enginewright.plugins.attention.cuda.kernel_set import (
    KernelEntry,
    KernelSet,
    KernelSetError,
    abi_digest,
)

COMPILER = shutil.which("c++") or shutil.which("g++")
SOURCES = Path(__file__).parent / "embedded"
CAPABILITIES = ("8.6", "9.0")
CONFIGS = 40
STEPS = 300

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


def random_config(rng: random.Random) -> KernelConfig:
    kv_heads = rng.choice([1, 2, 3, 8])
    head_dim = rng.randrange(32, 257, 16)
    return KernelConfig(
        io=rng.choice(["float16", "bfloat16"]),
        num_heads=kv_heads * rng.choice([1, 3, 7, 16, 40, 71]),
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=rng.choice([8, 32, 128]),
        cache=rng.choice(configs.CACHE_DTYPES),
        rotary_dim=rng.choice([0, head_dim, 2 * rng.randrange(1, head_dim // 2)]),
        interleaved=rng.random() < 0.5,
        has_sinks=rng.random() < 0.5,
        has_softcap=rng.random() < 0.5,
    )


def fabricated(config: KernelConfig, kernel: str, capability: str, folder: Path) -> KernelEntry:
    """An entry whose code is no code: nothing here runs it."""
    rng = random.Random(f"{config.key} {kernel} {capability}")
    code = rng.randbytes(rng.randrange(24, 60))
    file = f"{kernel}-{config.key}-{capability}.cubin"
    (folder / file).write_bytes(code)
    hidden = rng.randrange(3)
    return KernelEntry(
        kernel=kernel,
        config=config,
        capability=capability,
        file=file,
        sha256=hashlib.sha256(code).hexdigest(),
        symbol=f"{kernel}_{len(launch.ARGUMENTS[kernel]) + hidden}",
        num_warps=rng.choice([4, 8]),
        shared_bytes=rng.choice([0, 20736, 48 << 10, 81920]),
        registers=255,
        spill_bytes=0,
        hidden_pointers=hidden,
    )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelSet:
    folder, rng = tmp_path_factory.mktemp("kernels"), random.Random(5)
    made = tuple(dict.fromkeys(random_config(rng) for _ in range(CONFIGS)))
    entries = tuple(
        fabricated(config, kernel, capability, folder)
        for config in made
        for kernel in KERNELS
        for capability in CAPABILITIES
    )
    return KernelSet(folder, abi_digest(), "none", entries)


@pytest.fixture(scope="module")
def program(kernels: KernelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``steps`` and of the libcuda.so.1 that it finds there."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "table.cpp").write_text(embed.source(kernels), "utf-8")
    flags = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"]
    recorder = ["-shared", "-fPIC", str(SOURCES / "recorder.cpp"), "-o", "libcuda.so.1"]
    parts = [str(SOURCES / "steps.cpp"), "table.cpp", "-I", str(embed.FOLDER), "-I", str(folder)]
    linked = ["-o", "steps", "-ldl", "-pthread"]
    subprocess.run([*flags, *recorder], cwd=folder, check=True)
    subprocess.run([*flags, *parts, *linked], cwd=folder, check=True)
    return folder


def run(program: Path, lines: list[str], *, driver: bool = True, fail: str = "") -> list[str]:
    search = str(program) if driver else "/nowhere"
    environment = {**os.environ, "LD_LIBRARY_PATH": search, "FAKE_FAIL": fail}
    done = subprocess.run(
        [str(program / "steps")],
        input="\n".join(lines),
        env=environment,
        text=True,
        capture_output=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()


@dataclass(frozen=True)
class Step:
    entry: int
    device: int
    shape: launch.Shape
    scalars: launch.Scalars
    pointers: dict[str, int | None]

    @property
    def line(self) -> str:
        addresses = [self.pointers.get(name) or 0 for name in launch.POINTERS]
        numbers = (self.entry, self.device, *astuple(self.shape), *astuple(self.scalars))
        return " ".join(map(str, ("run", *numbers, *addresses)))


def as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def random_step(rng: random.Random, kernels: KernelSet) -> Step:
    entry = rng.randrange(len(kernels.entries))
    config = kernels.entries[entry].config
    softcap = as_float32(rng.uniform(1, 60)) if config.has_softcap else 0.0
    # As TensorRT hands them over: the workspace always, what the node has no input for never.
    absent = set() if config.rotary_dim else {"cos", "sin"}
    absent |= set() if config.has_sinks else {"sinks"}
    absent |= set() if config.quantized else {"k_scale", "v_scale"}
    return Step(
        entry,
        rng.randrange(len(CAPABILITIES)),
        launch.Shape(
            rng.choice([1, 2, 7, 64, 300]),
            rng.choice([1, 1, 2, 33, 2048]),
            rng.choice([1, 4, 5, 512, 4096]),
        ),
        launch.Scalars(as_float32(rng.uniform(0.01, 1)), rng.choice([0, 1, 4096]), softcap),
        {name: rng.getrandbits(43) << 4 for name in launch.POINTERS if name not in absent},
    )


def word(argument: launch.Argument) -> int:
    """The 64 bits at an argument's address."""
    if argument.kind == "float32":
        return int(struct.unpack("I", struct.pack("f", argument.value))[0])
    return argument.value or 0


def expected(step: Step, kernels: KernelSet) -> list[str]:
    config, capability = kernels.entries[step.entry].config, CAPABILITIES[step.device]
    lines = []
    for each in launch.launches(config, capability, step.shape, step.scalars, step.pointers):
        entry = kernels.find(config, each.kernel, capability)
        words = [word(argument) for argument in each.arguments] + [0] * entry.hidden_pointers
        block = (32 * entry.num_warps, 1, 1, entry.shared_bytes)
        numbers = " ".join(map(str, (*each.grid, *block)))
        lines.append(f"launch {entry.symbol} {numbers} 0x57 0 " + " ".join(f"{w:x}" for w in words))
    return lines


@needs_compiler
def test_every_launch_is_the_one_that_python_plans(program, kernels):
    rng = random.Random(11)
    steps = [random_step(rng, kernels) for _ in range(STEPS)]
    said = run(program, [step.line for step in steps])
    ends = [at for at, line in enumerate(said) if line == "end"]
    assert len(ends) == STEPS
    runs = [
        said[start:end] for start, end in zip([0, *(at + 1 for at in ends)], ends, strict=False)
    ]
    for step, lines in zip(steps, runs, strict=True):
        assert [line for line in lines if line.startswith("launch")] == expected(step, kernels)
        assert not [line for line in lines if line.startswith("error")]
    kinds = {tuple(line.split("_")[0] for line in expected(step, kernels)) for step in steps}
    assert len(kinds) == 3, "prefill, a decode in one split, a decode in several"


@needs_compiler
def test_each_kernel_is_loaded_once_for_a_device_and_given_back(program, kernels):
    step = random_step(random.Random(1), kernels)
    decode = replace(step, device=0, shape=launch.Shape(1, 1, 4096))
    lines = [decode.line, replace(decode, device=1).line, decode.line]
    said = run(program, lines)
    loaded = sorted(line.split()[1] for line in said if line.startswith("load"))
    given_back = sorted(line.split()[1] for line in said if line.startswith("unload"))
    used = [
        kernels.find(kernels.entries[step.entry].config, kernel, capability)
        for kernel in ("cache_write", "decode", "reduce")
        for capability in CAPABILITIES
    ]
    codes = [int.from_bytes(kernels.cubin(entry)[:8], "little") for entry in used]
    assert loaded == sorted(f"{code:016x}" for code in codes)
    assert given_back == loaded
    asked = [line for line in said if line.startswith("attribute")]
    assert len(asked) == len([entry for entry in used if entry.shared_bytes > 48 << 10])
    assert "shared 1" in said


@needs_compiler
def test_threads_that_start_together_load_each_kernel_once(program, kernels):
    at = next(i for i, entry in enumerate(kernels.entries) if entry.config.has_softcap)
    said = run(program, [f"threads {at} 16"])
    planned = launch.launches(
        kernels.entries[at].config,
        "8.6",
        launch.Shape(1, 1, 4),
        launch.Scalars(1.0, 0, 1.0),
        dict.fromkeys(launch.POINTERS, 0x100),
    )
    assert len([line for line in said if line.startswith("launch")]) == 16 * len(planned)
    assert len([line for line in said if line.startswith("load")]) == len(planned)


@needs_compiler
def test_the_workspace_is_as_large_as_python_says(program, kernels):
    asked = [(at, batch) for at in range(0, len(kernels.entries), 8) for batch in (1, 3, 64, 500)]
    said = run(program, [f"workspace {at} {batch}" for at, batch in asked])
    wanted = [launch.workspace_bytes(kernels.entries[at].config, batch) for at, batch in asked]
    assert said[:-1] == [f"workspace {size}" for size in wanted]


@needs_compiler
def test_the_table_holds_what_the_index_says(program, kernels):
    said = run(program, ["table"])[:-1]
    assert len(said) == len(kernels.entries)
    for line, entry in zip(said, kernels.entries, strict=True):
        config = entry.config
        numbers = (
            configs.IO_DTYPES.index(config.io),
            config.num_heads,
            config.kv_heads,
            config.head_dim,
            config.block_size,
            configs.CACHE_DTYPES.index(config.cache),
            config.rotary_dim,
            int(config.interleaved),
            int(config.has_sinks),
            int(config.has_softcap),
            KERNELS.index(entry.kernel),
            entry.capability,
            entry.symbol,
            entry.num_warps,
            entry.shared_bytes,
            entry.hidden_pointers,
            tile(config, entry.kernel, entry.capability).rows,
            kernels.cubin(entry).hex(),
        )
        assert line == " ".join(map(str, ("entry", *numbers)))


def _changed(step: Step, name: str, value: int | None) -> Step:
    return replace(step, pointers={**step.pointers, name: value})


@needs_compiler
def test_what_cannot_be_launched_is_told_and_nothing_runs(program, kernels):
    step = random_step(random.Random(2), kernels)
    lines = [
        _changed(step, "v", None).line,
        _changed(step, "out", 0x1008).line,
        replace(step, device=2).line,
    ]
    said = run(program, lines)
    assert [line for line in said if line.startswith("error")] == [
        "error no pointer for argument 2",
        "error the pointer for argument 13 is not aligned to 16 bytes",
        "error no kernels for compute capability 7.5: the engine has those for 8.6, 9.0",
    ]
    assert not [line for line in said if line.startswith(("load", "launch"))]


@needs_compiler
@pytest.mark.parametrize(
    "function", ["cuCtxGetDevice", "cuLibraryLoadData", "cuLibraryGetKernel", "cuLaunchKernel"]
)
def test_a_call_that_fails_is_named(program, kernels, function):
    said = run(program, [random_step(random.Random(3), kernels).line], fail=function)
    assert f"error {function}: CUDA_ERROR_LAUNCH_FAILED (719)" in said
    loaded = [line for line in said if line.startswith("load")]
    given_back = [line for line in said if line.startswith("unload")]
    failed_to_load = function == "cuLibraryLoadData"
    assert len(loaded) - len(given_back) == int(failed_to_load), "what was loaded is given back"


@needs_compiler
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a driver")
def test_without_a_driver_the_launch_is_refused(program, kernels):
    said = run(program, [random_step(random.Random(4), kernels).line], driver=False)
    assert any(line.startswith("error no NVIDIA driver: libcuda.so.1") for line in said)


def test_a_changed_cubin_is_not_embedded(tmp_path):
    config = KernelConfig("float16", 4, 2, 64, 32)
    entry = fabricated(config, "decode", "8.6", tmp_path)
    kernels = KernelSet(tmp_path, abi_digest(), "none", (entry,))
    (tmp_path / entry.file).write_bytes(b"another")
    with pytest.raises(KernelSetError, match="changed"):
        embed.source(kernels)
