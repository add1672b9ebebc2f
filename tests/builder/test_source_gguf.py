"""GGUF files of every family: weights, blocks and config against transformers and the original."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import Source, open_source
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.weights import transposed
from enginewright.runtime.errors import SourceError, UnsupportedModelError

Make = Callable[..., Path]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 288,
    "max_position_embeddings": 128,
}
COMMON = {
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500.0,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(name: str, **changes: Any) -> Any:
    kind = getattr(transformers, f"{name}Config")
    return kind(**(SIZES | {"rms_norm_eps": 1e-5, "rope_parameters": ROPE} | changes))


def llama3_divisors() -> np.ndarray[Any, Any]:
    """What llama.cpp's converter writes into rope_freqs.weight, one number at a time."""
    divisors = []
    for i in range(8):
        wave = 2 * np.pi * 500_000.0 ** (2 * i / 16)
        if wave < 8192 / 4:
            divisors.append(1.0)
        elif wave > 8192:
            divisors.append(8.0)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(divisors, np.float32)


GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 7000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 900.0},
}
CASES: dict[str, tuple[Any, str, Mapping[str, Any], Mapping[str, Any]]] = {
    "llama": (config("Llama"), "llama", COMMON | {"rope.dimension_count": 16}, {}),
    "llama-tied": (config("Llama", tie_word_embeddings=True), "llama", COMMON, {}),
    "llama-biased": (config("Llama", attention_bias=True), "llama", COMMON, {}),
    "llama-wide-heads": (
        config("Llama", head_dim=32),
        "llama",
        COMMON
        | {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32},
        {},
    ),
    "llama-3": (
        config("Llama", rope_parameters=LLAMA3),
        "llama",
        COMMON | {"rope.freq_base": 500_000.0},
        {"rope_freqs.weight": llama3_divisors()},
    ),
    "llama-linear": (
        config("Llama", rope_parameters={**ROPE, "rope_type": "linear", "factor": 4.0}),
        "llama",
        COMMON | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {},
    ),
    "qwen2": (config("Qwen2"), "qwen2", COMMON, {}),
    "qwen3": (
        config("Qwen3", head_dim=32),
        "qwen3",
        COMMON | {"attention.key_length": 32, "attention.value_length": 32},
        {},
    ),
    "gemma2": (
        config("Gemma2", head_dim=32, query_pre_attn_scalar=32, sliding_window=8),
        "gemma2",
        COMMON
        | {
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attention.sliding_window": 8,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {},
    ),
    "gemma3": (
        config(
            "Gemma3Text",
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=8,
            rope_parameters=GEMMA3_ROPE,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "gemma3",
        COMMON
        | {
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [True, False],
            "rope.freq_base": 7000.0,
            "rope.freq_base_swa": 900.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        {},
    ),
    "phi3": (
        config(
            "Phi3",
            pad_token_id=2,
            sliding_window=16,
            rope_parameters={**ROPE, "partial_rotary_factor": 0.5},
            original_max_position_embeddings=128,
        ),
        "phi3",
        COMMON | {"rope.dimension_count": 8, "attention.sliding_window": 16},
        {},
    ),
    "gpt2": (
        transformers.GPT2Config(
            n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=128, vocab_size=288
        ),
        "gpt2",
        {
            "context_length": 128,
            "embedding_length": 64,
            "feed_forward_length": 96,
            "block_count": 2,
            "attention.head_count": 4,
            "attention.layer_norm_epsilon": 1e-5,
        },
        {},
    ),
}


def opened(path: Path) -> Source:
    return open_source(SourceSpec(gguf=path))


@pytest.fixture(scope="module")
def tiny(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), CASES["llama"][0])


def written(make_gguf: Make, tiny: Path, folder: Path, **changes: Any) -> Path:
    """The tiny Llama as GGUF; ``changes`` replace keys of its section or are make_gguf's own."""
    own = {key: changes.pop(key) for key in ("types", "extra", "general") if key in changes}
    arch = changes.pop("arch", "llama")
    section = {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {k: v for k, v in (COMMON | section).items() if v is not None}
    return make_gguf(tiny, folder / "tiny.gguf", arch, metadata, **own)


@pytest.mark.parametrize("case", CASES)
def test_a_family_equals_the_checkpoint_it_was_written_from(
    make_checkpoint: Make, make_gguf: Make, tmp_path: Path, case: str
) -> None:
    original, arch, metadata, extra = CASES[case]
    checkpoint = make_checkpoint(tmp_path / "checkpoint", original)
    path = make_gguf(checkpoint, tmp_path / "tiny.gguf", arch, metadata, extra=extra)
    source = opened(path)
    expected = open_source(SourceSpec(path=checkpoint)).reference_model()
    assert source.architecture == type(expected).__name__
    reference = source.reference_model()
    for name, parameter in expected.named_parameters(remove_duplicate=False):
        values = parameter.detach().numpy()
        rounded = 1e-7 if arch.startswith("gemma") and "norm" in name else 0  # one was added
        np.testing.assert_allclose(source.weight(name).numpy(), values, rtol=0, atol=rounded)
        loaded = reference.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(source.weight(name).numpy(), loaded)
    assert_same_logits(reference, expected)


def assert_same_logits(model: Any, expected: Any) -> None:
    ids = torch.randint(3, 288, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0])
def test_blocks_are_carried_over_exactly(
    make_gguf: Make, tiny: Path, tmp_path: Path, kind: Type
) -> None:
    types = {".weight": kind}
    source = opened(written(make_gguf, tiny, tmp_path, types=types))
    loaded = source.reference_model().state_dict()
    with_blocks = 0
    for name, weight in source.weights.items():
        values = loaded[name].numpy()
        np.testing.assert_array_equal(weight.numpy(), values)
        np.testing.assert_array_equal(weight.rows(1, 5), values[1:5])
        blocks = weight.blocks()
        assert (blocks is None) == (values.ndim == 1)
        if blocks is not None:
            assert (blocks.bits, blocks.block_size) == (8 if kind is Type.Q8_0 else 4, 32)
            floating = kind is Type.Q4_1
            assert blocks.zero_points is None
            assert blocks.zero == (0 if floating else 1 << (blocks.bits - 1))
            assert (blocks.offsets is not None) == floating
            np.testing.assert_array_equal(blocks.dequantize(), values)
            with_blocks += 1
    assert with_blocks == 2 * 7 + 2


@pytest.mark.parametrize("kind", [Type.Q5_0, Type.Q5_1, Type.F16, Type.BF16])
def test_other_types_are_dequantized(
    make_gguf: Make, tiny: Path, tmp_path: Path, kind: Type
) -> None:
    source = opened(written(make_gguf, tiny, tmp_path, types={".weight": kind}))
    loaded = source.reference_model().state_dict()
    for name, weight in source.weights.items():
        np.testing.assert_array_equal(weight.numpy(), loaded[name].numpy())
        assert weight.blocks() is None


def test_a_quantized_matrix_that_is_transposed(
    make_checkpoint: Make, make_gguf: Make, tmp_path: Path
) -> None:
    original, arch, metadata, _ = CASES["gpt2"]
    checkpoint = make_checkpoint(tmp_path / "checkpoint", original)
    types = {"ffn_up.weight": Type.Q4_0}
    path = make_gguf(checkpoint, tmp_path / "tiny.gguf", arch, metadata, types=types)
    source = opened(path)
    loaded = source.reference_model().state_dict()
    name = "transformer.h.0.mlp.c_fc.weight"
    np.testing.assert_array_equal(source.weight(name).numpy(), loaded[name].numpy())
    blocks = transposed(source.weight(name)).blocks()
    assert blocks is not None
    np.testing.assert_array_equal(blocks.dequantize(), loaded[name].numpy().T)


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q2_K, Type.Q3_K])
def test_k_quants(kind: Type) -> None:
    """Random bytes are legal blocks as long as their halves are finite."""
    rng = np.random.default_rng(int(kind))
    sizes = {Type.Q2_K: 84, Type.Q3_K: 110, Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210}
    data = rng.integers(0, 256, (6, 2, sizes[kind]), np.uint8)
    halves = rng.uniform(-1, 1, (6, 2, 2)).astype(np.float16).view(np.uint8)
    place = {Type.Q2_K: 80, Type.Q3_K: 108, Type.Q6_K: 208}.get(kind, 0)
    data[..., place : place + 4] = halves[..., : sizes[kind] - place]
    weight = GgufWeight(GgufTensor(kind, (6, 512), data.reshape(6, -1)))
    whole = dequantize(data.reshape(6, -1), kind)
    assert np.isfinite(whole).all()
    assert whole.std() > 0
    np.testing.assert_array_equal(weight.numpy(), whole)
    np.testing.assert_array_equal(weight.rows(2, 5), whole[2:5])
    blocks = weight.blocks()
    assert (blocks is not None) == (kind is Type.Q4_K)
    if blocks is not None:
        assert (blocks.bits, blocks.block_size) == (4, 32)
        assert (blocks.zero_points, blocks.zero) == (None, 0)
        assert blocks.offsets is not None
        np.testing.assert_array_equal(blocks.dequantize(), whole)


def test_facts(make_gguf: Make, tiny: Path, tmp_path: Path) -> None:
    path = written(make_gguf, tiny, tmp_path)
    source = opened(path)
    assert (source.kind, source.reference) == ("gguf", "tiny.gguf")
    assert source.stored_bytes == path.stat().st_size
    assert source.positions == 128
    digest = source.digest
    moved = path.rename(tmp_path / "moved.gguf")
    assert opened(moved).digest == digest
    assert open_source(SourceSpec(path=moved)).kind == "gguf"


def test_where_transformers_reads_a_key_ours_says_the_same(
    make_gguf: Make, tiny: Path, tmp_path: Path
) -> None:
    path = written(make_gguf, tiny, tmp_path, rope__dimension_count=16)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    ours = opened(path).model_config().to_dict()
    assert type(theirs) is transformers.LlamaConfig
    differing = {key for key, value in theirs.to_dict().items() if ours.get(key) != value}
    assert differing <= {"architectures", "_name_or_path", "transformers_version", "dtype"}


def test_an_unknown_architecture_is_refused_by_name(
    make_gguf: Make, tiny: Path, tmp_path: Path
) -> None:
    path = written(make_gguf, tiny, tmp_path)
    content = path.read_bytes().replace(b"llama", b"lamma")
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="'lamma'; of GGUF files llama, qwen2"):
        opened(path)


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.ffn_gate_exps.weight",
        "blk.2.attn_q.weight",
        "blk.0.ffn_up.bias",
        "blk.x.attn_q.weight",
        "blk.attn_q.weight",
        "vision.weight",
    ],
)
def test_a_tensor_without_a_place_is_refused_by_name(
    make_gguf: Make, tiny: Path, tmp_path: Path, name: str
) -> None:
    extra = {name: np.ones((4, 4), np.float32)}
    path = written(make_gguf, tiny, tmp_path, extra=extra)
    with pytest.raises(UnsupportedModelError, match=f"no place for the tensor {name}"):
        opened(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
        ({"rope__dimension_count": 8}, "rotates 8 of 16 dimensions"),
        ({"attention__head_count_kv": [2, 1]}, "head_count_kv differs between layers"),
        ({"attention__key_length": 16, "attention__value_length": 32}, "differ in size"),
        (
            {"extra": {"rope_freqs.weight": np.linspace(1, 7, 8, dtype=np.float32)}},
            "not those of Llama 3",
        ),
        ({"general": {"tokenizer.ggml.pre": "unheard-of"}}, "'unheard-of'"),
        ({"general": {"tokenizer.ggml.model": "rwkv"}}, "'rwkv'; built are gpt2"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    make_gguf: Make, tiny: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = written(make_gguf, tiny, tmp_path, **changes)
    with pytest.raises(UnsupportedModelError, match=problem):
        opened(path)


def test_a_missing_key_is_named(make_gguf: Make, tiny: Path, tmp_path: Path) -> None:
    path = written(make_gguf, tiny, tmp_path, context_length=None)
    with pytest.raises(SourceError, match=r"no llama\.context_length"):
        opened(path)


@pytest.mark.parametrize("kept", [4, 20, 60, 0.3, 0.6, -1])
def test_a_truncated_file_is_named(
    make_gguf: Make, tiny: Path, tmp_path: Path, kept: float
) -> None:
    path = written(make_gguf, tiny, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(SourceError, match=r"tiny\.gguf: truncated"):
        opened(path)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(SourceError, match="not a GGUF file"):
        opened(path)
    with pytest.raises(SourceError, match="no such file"):
        opened(tmp_path / "b.gguf")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 0, 0))
    with pytest.raises(SourceError, match="version 99"):
        opened(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(SourceError, match=r"no general\.architecture"):
        opened(path)
