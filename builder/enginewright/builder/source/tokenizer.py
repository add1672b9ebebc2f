"""The source's tokenizer, template and generation config, and how they enter an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from enginewright.builder.source.json_file import read_json
from enginewright.builder.source.quiet import quiet_transformers
from enginewright.runtime.errors import ChatTemplateError, SourceError, UnsupportedModelError
from enginewright.runtime.text.chat import ChatTemplate

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_PROBES = (
    "Hello, world!  Two spaces, 12345.6\n\tit's naïve 漢字 🙂",
    " leading space",
)


class SourceTokenizer:
    """Loads on first use; ``original`` is the tokenizer.json that came with the source, if any."""

    def __init__(
        self,
        load: Callable[[], PreTrainedTokenizerFast],
        generation_config: Mapping[str, Any],
        original: Path | None = None,
    ) -> None:
        self._load = load
        self.generation_config = generation_config
        self._original = original

    @cached_property
    def loaded(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers loads it: the reference for ids and special tokens."""
        return self._load()

    @property
    def eos_token_id(self) -> int | None:
        found: int | None = self.loaded.eos_token_id
        return found

    @property
    def bos_token_id(self) -> int | None:
        found: int | None = self.loaded.bos_token_id
        return found

    @property
    def chat_template(self) -> str | None:
        """The template named default, where a model has several."""
        found = self.loaded.chat_template
        return found.get("default") if isinstance(found, dict) else found

    def check(self, location: Path) -> None:
        """Raise SourceError for a generation config or a template that nothing could use."""
        try:
            with quiet_transformers():
                GenerationConfig.from_dict(dict(self.generation_config))
        except (AttributeError, TypeError, ValueError) as error:
            raise SourceError(f"{location}: the generation config is not legal: {error}") from error
        if self.chat_template is not None:
            check_template(self.chat_template, location)

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write the files that there are into the folder; returns their names."""
        self._write_model(folder / "tokenizer.json")
        special = {name: getattr(self.loaded, name) for name in _SPECIAL}
        config = {name: token for name, token in special.items() if token is not None}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["clean_up_tokenization_spaces"] = bool(self.loaded.clean_up_tokenization_spaces)
        _write_json(folder / "tokenizer_config.json", config)
        written = ["tokenizer.json", "tokenizer_config.json"]
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, "utf-8", newline="")
            written.append("chat_template.jinja")
        if self.generation_config:
            _write_json(folder / "generation_config.json", self.generation_config)
            written.append("generation_config.json")
        return tuple(written)

    def _write_model(self, path: Path) -> None:
        """The source's own file where it does what transformers does, else what transformers made.

        They differ where tokenizer_config.json adds special tokens that tokenizer.json lacks, and
        where a file was saved with truncation or padding on.
        """
        backend = Tokenizer.from_str(self.loaded.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        if self._original is not None and _same_ids(
            Tokenizer.from_file(str(self._original)), backend
        ):
            shutil.copyfile(self._original, path)
        else:
            path.write_text(backend.to_str(), "utf-8", newline="")


def check_template(template: str, location: Path) -> None:
    """Compile a chat template as the runtime will; whether it ends shows when it is used."""
    try:
        ChatTemplate(template)
    except ChatTemplateError as error:
        line = getattr(error.__cause__, "lineno", None)
        place = "" if line is None else f" (line {line})"
        raise SourceError(
            f"{location}: the chat template cannot be compiled{place}: "
            f"{getattr(error.__cause__, 'message', error)}; correct it, or remove it from the "
            f"source and give chat_template= when the artifact is loaded"
        ) from error


def folder_tokenizer(folder: Path) -> SourceTokenizer:
    """The tokenizer of a Hugging Face folder; raises SourceError if it has none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SourceError(
            f"{folder}: no tokenizer; one of {', '.join(TOKENIZER_FILES)} must lie in the folder"
        )
    generation = folder / "generation_config.json"
    original = folder / "tokenizer.json"
    return SourceTokenizer(
        lambda: _load_folder(folder),
        read_json(generation) if generation.is_file() else {},
        original if original.is_file() else None,
    )


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    try:
        with quiet_transformers():
            loaded = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        said = " ".join(str(error).split())
        raise SourceError(f"{folder}: the tokenizer cannot be loaded: {said}") from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise UnsupportedModelError(
            f"{folder}: {type(loaded).__name__} has no fast form, so there is no tokenizer.json "
            f"to serve it with; add the model's tokenizer.json to the folder"
        )
    return loaded


def _same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    if one.truncation is not None or one.padding is not None:
        return False
    added = " ".join(token.content for token in other.get_added_tokens_decoder().values())
    return all(one.encode(text).ids == other.encode(text).ids for text in (*_PROBES, added))


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, "utf-8", newline="")
