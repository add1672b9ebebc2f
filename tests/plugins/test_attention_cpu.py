"""The compiled CachedAttention in ONNX Runtime against its meaning in numpy, with all kernels.

Each kind of kernels, which the environment asks for, computes all cases in a process of its
own: this file, run as a script.
"""

from __future__ import annotations

import itertools
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginewright.plugins.attention import cases
from enginewright.plugins.attention.contract import (
    BFLOAT16,
    DOMAIN,
    INPUTS,
    OP_TYPE,
    OUTPUTS,
    AttentionAttributes,
)
from enginewright.plugins.attention.reference import Rotary, Scales, cached_attention, encode

Arrays = dict[str, np.ndarray[Any, Any]]

KERNELS = ("portable", "avx2", "avx512", "amx")
DTYPES = ("float32", "float16", "int8")
CACHES = ("k_cache", "v_cache")
CLOSE = (1e-5, 4e-6)  # relative and absolute, where caches are equal


@dataclass(frozen=True)
class Case:
    """One step; all its tensors follow from its fields. Pasts and news hold one length a row."""

    dtype: str = "float32"
    heads: int = 6
    kv_heads: int = 2
    size: int = 16
    pasts: tuple[int, ...] = (0, 40, 3)
    news: tuple[int, ...] = (7, 1, 11)
    block: int = 32
    window: int = 0
    softcap: float = 0.0
    rotary_dim: int = 0
    interleaved: int = 0
    sinks: bool = False
    bfloat16: int = 1  # allowed; only a cache of float16, and AMX, make use of it

    @property
    def attributes(self) -> AttentionAttributes:
        c = self
        return AttentionAttributes(
            c.heads, c.kv_heads, c.size**-0.5, c.window, c.softcap, c.rotary_dim, c.interleaved
        )

    @property
    def blocks(self) -> int:
        """Of a row."""
        longest = max(past + new for past, new in zip(self.pasts, self.news, strict=True))
        return -(-longest // self.block)

    def step(self) -> Arrays:
        """The inputs of the step, caches as the reference has them."""
        rng = self._rng(0)
        rows, length, pool = len(self.pasts), max(self.news), len(self.pasts) * self.blocks + 2
        kv, size = self.kv_heads, self.size
        table = rng.permutation(pool)[: rows * self.blocks].reshape(rows, -1)
        caches = {
            name: self._stored(rng.normal(size=(pool, kv, self.block, size)), name)
            for name in CACHES
        }
        return {
            "q": rng.normal(size=(rows, length, self.heads * size)).astype(np.float32),
            "k": rng.normal(size=(rows, length, kv * size)).astype(np.float32),
            "v": rng.normal(size=(rows, length, kv * size)).astype(np.float32),
            **caches,
            "block_table": table.astype(np.int32),
            "past_lengths": np.array(self.pasts, np.int32),
            "new_lengths": np.array(self.news, np.int32),
        }

    def constants(self) -> Arrays:
        rng = self._rng(1)
        found: Arrays = {}
        if self.rotary_dim:
            places = np.arange(self.blocks * self.block)[:, None]
            angles = places / 10.0 ** np.linspace(0, 4, self.rotary_dim // 2)
            found |= {"cos": np.cos(angles), "sin": np.sin(angles)}
        if self.sinks:
            found["sinks"] = rng.normal(size=self.heads)
        if self.dtype == "int8":
            for name in ("k_scale", "v_scale"):
                found[name] = rng.uniform(0.02, 0.04, self.kv_heads)
        return {name: array.astype(np.float32) for name, array in found.items()}

    def expected(self, step: Arrays, tiles: bool = False) -> Arrays:
        """What the reference gives; rows beyond new_lengths are 0."""
        fixed = self.constants()
        rotary = Rotary(fixed["cos"], fixed["sin"]) if self.rotary_dim else None
        scales = Scales(fixed["k_scale"], fixed["v_scale"]) if self.dtype == "int8" else None
        step = {name: array.copy() for name, array in step.items()}
        out = cached_attention(
            **step, attributes=self.attributes, rotary=rotary, sinks=fixed.get("sinks"),
            scales=scales, tiles=tiles,
        )  # fmt: skip
        return {"out": out, **{name: step[name] for name in CACHES}}

    def model(
        self,
        constants: Arrays | None = None,
        left_out: tuple[str, ...] = (),
        **attributes: int,
    ) -> bytes:
        fixed = self.constants() if constants is None else constants
        step = [name for name in INPUTS[:8] if name not in left_out]
        names = [name if name in step or name in fixed else "" for name in INPUTS]
        while not names[-1]:
            names.pop()
        given = vars(self.attributes) | {BFLOAT16: self.bfloat16} | attributes
        node = helper.make_node(OP_TYPE, names, list(OUTPUTS), domain=DOMAIN, **given)
        stored = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

        def value(name: str, kind: int, rank: int) -> Any:
            return helper.make_tensor_value_info(name, kind, [None] * rank)

        inputs = [value(name, TensorProto.FLOAT, 3) for name in step if name in "qkv"]
        inputs += [value(name, stored, 4) for name in CACHES]
        inputs += [value("block_table", TensorProto.INT32, 2)]
        inputs += [value(name, TensorProto.INT32, 1) for name in INPUTS[6:8]]
        outputs = [value("out", TensorProto.FLOAT, 3)]
        outputs += [value(name, stored, 4) for name in OUTPUTS[1:]]
        weights = [numpy_helper.from_array(array, name) for name, array in fixed.items()]
        graph = helper.make_graph([node], "one", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()

    def _stored(self, values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        if self.dtype != "int8":
            return values.astype(self.dtype)
        scale = self.constants()[f"{name[0]}_scale"]
        return encode(values / scale[:, None, None], np.dtype(np.int8))

    def _rng(self, more: int) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr(self).encode()) + more)


def swept() -> Iterator[Case]:
    """What every lowering is held to, and the operator's own cases; it offers all of them."""
    long = Case(pasts=(0, 300, 900, 515), news=(600, 1, 33, 0))
    for dtype in DTYPES:
        for case in (
            *(Case(**asdict(shared)) for shared in cases.CASES),
            Case(),
            long,
            Case(pasts=(2000,), news=(1,), heads=9, kv_heads=3, size=64),
            Case(pasts=(700, 20), news=(5, 2)),
            *(Case(heads=heads, kv_heads=kv) for heads, kv in ((14, 2), (100, 1))),
            *(Case(size=size) for size in (1, 7, 20, 64, 72, 96, 128, 256)),
            *(Case(block=block, pasts=(300, 5), news=(40, 9)) for block in (64, 128, 256)),
            *(replace(long, window=window) for window in (1, 6, 256, 300)),
            *(replace(long, **change) for change in ({"softcap": 3.0}, {"sinks": True})),
            Case(size=20, rotary_dim=6, interleaved=1),
            replace(long, window=40, softcap=3.0, rotary_dim=16, sinks=True),
        ):
            yield replace(case, dtype=dtype)


CASES = {repr(case): case for case in swept()}


def session(library: Path, model: bytes, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def turned(keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[blocks, kv_heads, size, D] from [blocks, kv_heads, D, size], or back."""
    return np.ascontiguousarray(keys.transpose(0, 1, 3, 2))


def run(session: Any, step: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    """The outputs, rows beyond new_lengths 0, caches as the reference has them."""
    out, k_cache, v_cache = session.run(None, {**step, "k_cache": turned(step["k_cache"])})
    for row, new in enumerate(step["new_lengths"]):
        out[row, new:] = 0
    return {"out": out, "k_cache": turned(k_cache), "v_cache": v_cache}


SEQUENCE = Case(heads=6, kv_heads=2, size=24, pasts=(0,), news=(562,), rotary_dim=16, window=400)
"""One row, three chunks of 256, that is computed in other steps, too."""
SEQUENCES = {
    "sequence": SEQUENCE,
    "sequence in large blocks": replace(SEQUENCE, size=72, block=128, window=0, softcap=3.0),
}
LARGEST = Case("float16", pasts=(0,), news=(2,))
EXACT = Case("float16", pasts=(0, 300), news=(40, 1), bfloat16=0)
CUTS = {
    "in chunks of 32": [32] * 17 + [18],
    "in uneven chunks": [1, 255, 2, 100, 3, 148, 7, 6, 40],
    "one by one at the end": [520, *[1] * 42],
    "one by one over a chunk's end": [250, *[1] * 12, 300],
}


def largest_step() -> Arrays:
    """Values beyond the largest of float16, which are stored as that."""
    step = LARGEST.step()
    step["v"][0, 0, :2] = 1e6, -1e6
    return step


def in_steps(opened: Any, case: Case, lengths: list[int]) -> Arrays:
    """The sequence in several steps: the outputs together, and the cache at the end."""
    step, parts, past = case.step(), [], 0
    assert sum(lengths) == case.news[0]
    for new in lengths:
        part = {name: step[name][:, past : past + new] for name in ("q", "k", "v")}
        lengths_now = {"past_lengths": np.array([past], np.int32)}
        lengths_now["new_lengths"] = np.array([new], np.int32)
        found = run(opened, step | part | lengths_now)
        parts.append(found["out"])
        step |= {name: found[name] for name in CACHES}
        past += new
    return {"out": np.concatenate(parts, axis=1), **{name: step[name] for name in CACHES}}


def among_others(opened: Any, case: Case) -> Arrays:
    """The sequence in a batch, between shorter rows whose cache is elsewhere in the pool."""
    step, rows = case.step(), 3
    table, pool = step["block_table"], len(step["k_cache"])
    wide = {name: np.repeat(step[name], rows, axis=0) for name in ("q", "k", "v")}
    for name in ("q", "k"):
        wide[name][::2] *= 0.5
    batch = wide | {name: np.concatenate([step[name]] * rows) for name in CACHES}
    batch["block_table"] = np.concatenate([table + pool, table, table + 2 * pool])
    batch["past_lengths"] = np.zeros(rows, np.int32)
    batch["new_lengths"] = np.array([3, case.news[0], 77], np.int32)
    found = run(opened, batch)
    return {"out": found["out"][1:2], **{name: found[name][:pool] for name in CACHES}}


def compute(library: Path) -> Arrays:
    """The outputs of all cases by name, and of their other runs."""
    found: Arrays = {}

    def keep(name: str, outputs: Arrays) -> None:
        found.update({f"{name} {output}": array for output, array in outputs.items()})

    for name, case in CASES.items():
        one, two = (session(library, case.model(), threads) for threads in (1, 2))
        keep(name, run(one, case.step()))
        keep(f"{name} two threads", run(two, case.step()))
    keep("exact", run(session(library, EXACT.model()), EXACT.step()))
    keep("largest", run(session(library, LARGEST.model()), largest_step()))
    for dtype, (name, sequence) in itertools.product(DTYPES, SEQUENCES.items()):
        case = replace(sequence, dtype=dtype)
        opened = session(library, case.model(), 2)
        keep(f"{dtype} {name}", run(opened, case.step()))
        keep(f"{dtype} {name} in a batch", among_others(opened, case))
        for cut, lengths in CUTS.items():
            keep(f"{dtype} {name} {cut}", in_steps(opened, case, lengths))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_and_caches_are_those_of_the_reference(computed, cpu_kernels, dtype):
    tiles = cpu_kernels == "amx" and dtype == "float16"
    for name, case in CASES.items():
        if case.dtype != dtype:
            continue
        wanted = case.expected(case.step(), tiles)
        found = {output: computed[f"{name} {output}"] for output in wanted}
        # Where a number lies between two codes, rounding in float32 may take the other.
        codes = {"float32": 1e-6, "float16": 4e-3, "int8": 1}[dtype]
        for cache in CACHES:
            apart = np.abs(found[cache].astype(np.float64) - wanted[cache].astype(np.float64))
            assert apart.max() <= codes, (name, cache)
            if dtype == "int8":
                assert (apart != 0).mean() < 1e-3, (name, cache)
        same = all(np.array_equal(found[cache], wanted[cache]) for cache in CACHES)
        if tiles:  # a number between two of bfloat16 may become the other one there
            apart = np.abs(found["out"] - wanted["out"])
            assert np.quantile(apart, 0.95) < (1e-5 if same else 1e-4), name
            assert apart.max() < 4e-3, name
            continue
        close = 4e-6 if same or dtype == "float32" else 2e-3
        np.testing.assert_allclose(found["out"], wanted["out"], 1e-5, close, err_msg=name)


def test_threads_change_no_bit(computed):
    for name in CASES:
        for output in ("out", *CACHES):
            one, two = computed[f"{name} {output}"], computed[f"{name} two threads {output}"]
            assert np.array_equal(one, two), name


@pytest.mark.parametrize("other", ["in a batch", *CUTS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SEQUENCES)
def test_prefill_extension_and_decode_give_the_same_bits(computed, name, dtype, other):
    for output in ("out", *CACHES):
        whole = computed[f"{dtype} {name} {output}"]
        assert np.array_equal(whole, computed[f"{dtype} {name} {other} {output}"]), output


def test_values_beyond_the_largest_are_stored_as_that(computed, cpu_kernels):
    step, tiles = largest_step(), cpu_kernels == "amx"
    stored = computed["largest v_cache"][step["block_table"][0, 0], 0, 0, :2]
    assert stored.tolist() == [65504, -65504]
    wanted = LARGEST.expected(step, tiles)["out"]
    np.testing.assert_allclose(computed["largest out"], wanted, *((4e-3, 1e-3) if tiles else CLOSE))


def test_the_environment_chooses_the_kernels(compute_with):
    found, portable = compute_with("avx2"), compute_with("portable")
    differ = [name for name in found if not np.array_equal(found[name], portable[name])]
    assert differ, "portable ones round products and sums apart"


def test_wider_registers_give_the_same_bits(compute_with):
    found, narrow = compute_with("avx512"), compute_with("avx2")
    assert [name for name in found if not np.array_equal(found[name], narrow[name])] == []


def test_nothing_becomes_bfloat16_where_that_is_not_allowed(compute_with):
    found, wanted = (compute_with(name)["exact out"] for name in ("amx", "avx512"))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_bound_in_place_is_written_in_place(library, dtype):
    case = Case(dtype, pasts=(5, 40), news=(1, 1))
    step = case.step()
    caches = {"k_cache": turned(step["k_cache"]), "v_cache": step["v_cache"].copy()}
    before = {name: array.copy() for name, array in caches.items()}
    opened = session(library, case.model())
    binding = opened.io_binding()
    for name, array in (step | caches).items():
        held = array.dtype.type, array.shape, array.ctypes.data
        binding.bind_input(name, "cpu", 0, *held)
        if name in caches:
            binding.bind_output(f"{name}_out", "cpu", 0, *held)
    binding.bind_output("out", "cpu")
    opened.run_with_iobinding(binding)
    wanted = case.expected(step)
    for name, array in caches.items():
        stored = turned(array) if name == "k_cache" else array
        was = turned(before[name]) if name == "k_cache" else before[name]
        changed = {tuple(at) for at in np.argwhere((stored != was).any(axis=(1, 3)))}
        table = step["block_table"]
        assert changed == {(table[0, 0], 5), (table[1, 1], 8)}, "the new tokens alone"
        assert np.abs(stored.astype(float) - wanted[name].astype(float)).max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("window", [0, 20])
def test_what_a_row_does_not_see_may_be_anything(library, dtype, window):
    case = Case(dtype, pasts=(40, 0, 33), news=(3, 20, 1), window=window)
    step = case.step()
    clean = run(session(library, case.model()), step)
    seen = np.zeros(step["k_cache"].shape[:1] + step["k_cache"].shape[2:3], bool)
    for row, (past, new) in enumerate(zip(case.pasts, case.news, strict=True)):
        for at in range(max(0, past + 1 - window) if window else 0, past + new):
            seen[step["block_table"][row, at // case.block], at % case.block] = True
    for name in CACHES:
        step[name].swapaxes(1, 2)[~seen] = np.nan
    for row, new in enumerate(case.news):
        for name in ("q", "k", "v"):
            step[name][row, new:] = np.inf
    dirty = run(session(library, case.model()), step)
    assert np.array_equal(clean["out"], dirty["out"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_q_k_and_v_side_by_side_are_the_same_step(library, dtype):
    case = Case(dtype, rotary_dim=16)
    step = case.step()
    wanted = run(session(library, case.model()), step)
    packed = {**step, "q": np.concatenate([step[name] for name in "qkv"], axis=2)}
    del packed["k"], packed["v"]
    opened = session(library, case.model(left_out=("k", "v")))
    found = run(opened, packed)
    for output, array in wanted.items():
        assert np.array_equal(found[output], array), output
    with pytest.raises(Exception, match="all three side by side"):
        run(opened, packed | {"q": packed["q"][..., :-16]})


def test_scores_that_differ_widely(library):
    case = Case(pasts=(300,), news=(2,))
    step = case.step()
    step["q"] *= 1000
    found, wanted = run(session(library, case.model()), step), case.expected(step)
    np.testing.assert_allclose(found["out"], wanted["out"], 1e-3, 1e-3)


def test_lengths_and_blocks_that_are_not_there_are_refused(library):
    case = Case()
    opened, step = session(library, case.model()), case.step()

    def refused(match: str, **changes: Any) -> None:
        spoilt = {name: np.array(value, np.int32) for name, value in changes.items()}
        with pytest.raises(Exception, match=match):
            run(opened, step | spoilt)

    refused("past_lengths are 0 or more", past_lengths=[-1, 40, 3])
    refused("new_lengths 0 to S", new_lengths=[7, 12, 11])
    refused("new_lengths 0 to S", new_lengths=[7, -1, 11])
    refused("longer than its blocks", past_lengths=[7, 64, 3])
    refused("a block that is not there", block_table=[[0, 1], [2, 99], [4, 5]])
    refused("a block that is not there", block_table=[[0, 1], [-1, 3], [4, 5]])
    refused("have B rows", block_table=[[0, 1]])
    refused("have B rows", past_lengths=[0, 0])
    wanted = case.expected(step)["out"]
    np.testing.assert_allclose(run(opened, step)["out"], wanted, 1e-5, 4e-6, err_msg="runs on")


def test_a_table_is_only_read_as_far_as_its_row_goes(library):
    case = Case(pasts=(0, 40), news=(1, 1))
    step = case.step()
    step["block_table"][0, 1] = 12345
    found, wanted = run(session(library, case.model()), step), case.expected(case.step())
    np.testing.assert_allclose(found["out"], wanted["out"], 1e-5, 4e-6)


def test_rotary_tables_that_are_too_short_are_refused(library):
    case = Case(rotary_dim=16)
    short = {name: array[:40] for name, array in case.constants().items()}
    with pytest.raises(Exception, match="longer than cos and sin"):
        run(session(library, case.model(short)), case.step())


@pytest.mark.parametrize(
    ("constants", "match"),
    [
        ({"cos": (64, 8)}, "cos and sin come with rotary_dim, and together"),
        ({"cos": (64, 8), "sin": (64, 8)}, "cos and sin come with rotary_dim"),
        ({"sinks": (5,)}, "sinks has num_heads numbers"),
        ({"k_scale": (2,), "v_scale": (2,)}, "int8 has k_scale and v_scale, no other has"),
    ],
)
def test_wrong_constants_are_refused(library, constants, match):
    given = {name: np.ones(shape, np.float32) for name, shape in constants.items()}
    with pytest.raises(Exception, match=match):
        run(session(library, Case().model(given)), Case().step())


def test_an_int8_cache_needs_its_scales(library):
    case = Case("int8")
    one = {"k_scale": case.constants()["k_scale"]}
    short = {name: array[:1] for name, array in case.constants().items()}
    for constants, match in (({}, "int8 has"), (one, "int8 has"), (short, "kv_heads numbers")):
        with pytest.raises(Exception, match=match):
            run(session(library, case.model(constants)), case.step())


@pytest.mark.parametrize(
    "shapes",
    [
        {"q": (3, 11, 95)},
        {"k": (3, 11, 16)},
        {"v": (3, 10, 32)},
        {"k_cache": (8, 3, 32, 16)},
        {"v_cache": (8, 2, 32, 8)},
        {"v_cache": (7, 2, 32, 16)},
        {"k_cache": (8, 2, 48, 16), "v_cache": (8, 2, 48, 16)},
        {"k_cache": (8, 2, 32, 300), "v_cache": (8, 2, 32, 300)},
    ],
    ids=str,
)
def test_tensors_of_other_shapes_are_refused(library, shapes):
    spoilt = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(Exception, match="CachedAttention: "):
        run(session(library, Case().model()), Case().step() | spoilt)


@pytest.mark.parametrize("wrong", ["num_heads 5", "kv_heads 0", "kv_heads -2", "window -1",
    "rotary_dim 3", "softcap -1.0", "abi_version 2"])  # fmt: skip
def test_wrong_attributes_are_refused(library, wrong):
    name, value = wrong.split()
    given = {name: float(value) if "." in value else int(value)}
    with pytest.raises(Exception, match=r"CachedAttention: (num_heads must|abi_version)"):
        session(library, Case().model(**given))


if __name__ == "__main__":
    np.savez(sys.argv[2], **compute(Path(sys.argv[1])))  # type: ignore[arg-type]
