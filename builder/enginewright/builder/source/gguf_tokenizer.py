"""The tokenizer, chat template and sampling defaults that a GGUF file carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import gguf_tokenizer_mapping

from enginewright.builder.source.gguf_file import GgufFile
from enginewright.builder.source.quiet import quiet_transformers
from enginewright.builder.source.tokenizer import SourceTokenizer
from enginewright.runtime.errors import SourceError, UnsupportedModelError

# tokenizer.ggml.pre of byte-level vocabularies. Transformers splits as GPT-2 does where it does
# not know the name; for these that is right, or right once each digit stands alone.
_AS_GPT2 = frozenset({"gpt-2", "default", "olmo", "phi-2", "mpt"})
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "codeshell", "command-r"})
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def gguf_tokenizer(file: GgufFile) -> SourceTokenizer:
    """Raises SourceError if the file has none, UnsupportedModelError for one not known."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None or not file.metadata.get("tokenizer.ggml.tokens"):
        raise SourceError(f"{file.path}: no tokenizer: the file's metadata holds no vocabulary")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{file.path}: tokenizer.ggml.model {kind!r}; built are gpt2 (byte-level) and llama "
            f"(SentencePiece)"
        )
    split = file.metadata.get("tokenizer.ggml.pre", "default")
    known = {*gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS, *_AS_GPT2, *_SINGLE_DIGITS}
    if kind == "gpt2" and split not in known:
        raise UnsupportedModelError(
            f"{file.path}: tokenizer.ggml.pre {split!r}: how it splits text is not known here; "
            f"known: {', '.join(sorted(known))}"
        )
    return SourceTokenizer(lambda: _load(file.path, split), _generation_config(file))


def _load(path: Path, split: str) -> PreTrainedTokenizerFast:
    convert: Any = gguf_tokenizer_mapping  # not annotated
    fast: Any = PreTrainedTokenizerFast
    try:
        with quiet_transformers():
            architecture, vocabulary, config = convert.get_gguf_tokenizer(str(path))
            backend, _ = convert.convert_gguf_tokenizer(architecture, vocabulary)
            if split in _SINGLE_DIGITS:
                digits = pre_tokenizers.Digits(individual_digits=True)
                rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
                backend.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
            loaded: PreTrainedTokenizerFast = fast(tokenizer_object=backend, **config)
    except Exception as error:
        raise SourceError(f"{path}: the tokenizer cannot be read: {error}") from error
    return loaded


def _generation_config(file: GgufFile) -> dict[str, Any]:
    """Stop tokens, and the sampling that the model's authors wrote into the file."""
    found: dict[str, Any] = {}
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    ends = {file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    ends.discard(None)
    if bos is not None:
        found["bos_token_id"] = bos
    if ends:
        found["eos_token_id"] = sorted(ends)
    for key, name in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if value is not None:
            found[name] = value
            found["do_sample"] = True
    return found
