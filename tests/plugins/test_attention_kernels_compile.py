"""Kernels compiled without a GPU: what they take of a device, their index, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from enginewright.plugins.attention.cuda.config import (
    CAPABILITIES,
    KERNELS,
    SHARED_BYTES,
    KernelConfig,
    UnsupportedAttentionError,
    tile,
)
from enginewright.plugins.attention.cuda.kernel_set import INDEX, KernelSet, KernelSetError

pytest.importorskip("triton")

from enginewright.plugins.attention.cuda.compile import compile_kernels

EVERYTHING = KernelConfig(
    "float16", 8, 2, 64, 32, cache="fp8", rotary_dim=64, has_sinks=True, has_softcap=True
)
SPILLED_AROUND_THE_LOOP = 8
"""A register or two of two larger kernels, stored and loaded once, outside of the loops."""
LARGER = [
    replace(EVERYTHING, head_dim=head_dim, cache=cache, rotary_dim=0)
    for head_dim in (128, 256)
    for cache in ("same", "int8", "fp8")
]
CORNERS = [
    replace(EVERYTHING, num_heads=64, kv_heads=1, head_dim=256, cache="same"),
    replace(EVERYTHING, num_heads=71, kv_heads=1, cache="int8"),
    replace(EVERYTHING, num_heads=9, kv_heads=3, head_dim=96),
    replace(EVERYTHING, num_heads=9, kv_heads=9, head_dim=80, cache="same"),
]


def check_resources(compiled: KernelSet, config: KernelConfig) -> None:
    for capability in compiled.capabilities:
        for kernel in KERNELS:
            entry = compiled.find(config, kernel, capability)
            assert entry.symbol == kernel
            assert entry.spill_bytes <= SPILLED_AROUND_THE_LOOP, entry
            assert entry.shared_bytes <= SHARED_BYTES[capability]
            # The registers of one block, of which a multiprocessor has 65536.
            assert entry.registers * 32 * entry.num_warps <= 65536
            assert entry.num_warps == tile(config, kernel, capability).num_warps
            assert entry.hidden_pointers == 2
            assert compiled.cubin(entry).startswith(b"\x7fELF")


def test_kernels_fit_the_device(tmp_path):
    chosen = ("8.6", "9.0", "12.0")
    compiled = compile_kernels([EVERYTHING, EVERYTHING], chosen, tmp_path)
    assert len(compiled.entries) == len(KERNELS) * len(chosen)
    assert compiled.capabilities == chosen
    check_resources(compiled, EVERYTHING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [EVERYTHING, *LARGER, *CORNERS],
    ids=lambda c: f"{c.head_dim} {c.cache} group {c.group}",
)
def test_all_kernels_compile_for_all_capabilities(config, tmp_path):
    compiled = compile_kernels([config], CAPABILITIES, tmp_path)
    assert compiled.capabilities == CAPABILITIES
    check_resources(compiled, config)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> KernelSet:
    return compile_kernels([EVERYTHING], ["8.0"], tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def folder(built, tmp_path):
    """A copy that a test may damage."""
    for name in built.files:
        (tmp_path / name).write_bytes((built.folder / name).read_bytes())
    return tmp_path


def test_what_is_written_is_read(built, folder):
    read = KernelSet.read(folder)
    assert read == replace(built, folder=folder)
    assert KernelSet.read(folder / INDEX) == read
    assert set(read.files) == {path.name for path in folder.iterdir()}
    for entry in read.entries:
        assert read.cubin(entry) == (folder / entry.file).read_bytes()


def test_the_same_sources_give_the_same_set(built, tmp_path):
    assert compile_kernels([EVERYTHING], ["8.0"], tmp_path) == replace(built, folder=tmp_path)


def test_a_missing_index(tmp_path):
    with pytest.raises(KernelSetError, match=r"kernels\.json: No such file"):
        KernelSet.read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("kernels"),
        lambda data: data["kernels"][0].pop("sha256"),
        lambda data: data["kernels"][0].update(registers="many"),
        lambda data: data["kernels"][0].update(surprise=1),
        lambda data: data["kernels"][0]["config"].update(head_dim=7),
        lambda data: data["kernels"][0].update(file="../kernel.cubin"),
        lambda data: data.update(kernels=3),
    ],
)
def test_a_damaged_index(folder, damage):
    data = json.loads((folder / INDEX).read_text())
    damage(data)
    (folder / INDEX).write_text(json.dumps(data))
    with pytest.raises(KernelSetError, match=r"kernels\.json: "):
        KernelSet.read(folder)


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_an_index_that_is_none(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(KernelSetError, match=r"kernels\.json: "):
        KernelSet.read(folder)


def test_an_index_of_another_abi(folder):
    data = json.loads((folder / INDEX).read_text())
    data["abi"] = "0123456789abcdef"
    (folder / INDEX).write_text(json.dumps(data))
    with pytest.raises(KernelSetError, match="ABI 0123456789abcdef"):
        KernelSet.read(folder)


def test_a_changed_and_a_missing_cubin(folder):
    read = KernelSet.read(folder)
    changed, missing = read.entries[:2]
    (folder / changed.file).write_bytes(read.cubin(changed)[:-1] + b"!")
    (folder / missing.file).unlink()
    with pytest.raises(KernelSetError, match=r"cache_write.*changed since it was compiled"):
        read.cubin(changed)
    with pytest.raises(KernelSetError, match=r"decode.*No such file"):
        read.cubin(missing)


def test_what_the_set_does_not_hold(built):
    with pytest.raises(KernelSetError, match=r"capability 9\.0: the engine has those for 8\.0"):
        built.find(EVERYTHING, "decode", "9.0")
    with pytest.raises(KernelSetError, match="'decode' for KernelConfig"):
        built.find(replace(EVERYTHING, head_dim=128), "decode", "8.0")


@pytest.mark.parametrize(
    ("io", "capability", "message"),
    [
        ("bfloat16", "7.5", r"bfloat16: GPUs of compute capability 7\.5"),
        ("float32", "8.0", "float32"),
        ("float16", "7.0", r"compute capability '7\.0': legal are 7\.5, 8\.0"),
    ],
)
def test_what_is_not_compiled(io, capability, message, tmp_path):
    config = replace(EVERYTHING, io=io)
    with pytest.raises(UnsupportedAttentionError, match=message):
        compile_kernels([config], [capability], tmp_path / "new")
    assert not (tmp_path / "new").exists()
