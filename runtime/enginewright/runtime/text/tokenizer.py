"""Text to token ids and back, by the artifact's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginewright.runtime.errors import ArtifactError, PromptError

if TYPE_CHECKING:
    import tokenizers


_LONG_TEXT = 10_000
"""Characters from which on a text is encoded as a batch of one, which lets other threads run."""


class Tokenizer:
    """A ``tokenizers.Tokenizer`` (``backend``) that takes any str and never truncates or pads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # A tokenizer.json may carry its training's truncation and padding; a prompt that is too
        # long must be refused, not cut.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._surfaces: dict[int, str | None] = {}

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json; ArtifactError when it is missing or damaged."""
        import tokenizers

        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path}: the tokenizer cannot be read ({error})") from error
        try:
            return cls(tokenizers.Tokenizer.from_buffer(content))
        except Exception as error:  # the library raises Exception itself, whatever is wrong
            raise ArtifactError(
                f"{path}: not a tokenizer that tokenizers {tokenizers.__version__} reads ({error})"
            ) from error

    @property
    def vocab_size(self) -> int:
        """How many ids have a token, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones included, as it is spelt in the vocabulary."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, as it is spelt.

        None stands for more of a text, but where a tokenizer swallows spaces.
        """
        return max(map(len, self.vocabulary), default=1)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of the text; special tokens written in it are recognised.

        Lone surrogates, which no UTF-8 can hold, count as U+FFFD.
        """
        if not isinstance(text, str):
            raise PromptError(f"a prompt must be text, not {type(text).__name__}: {text!r:.80}")
        clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if len(clean) < _LONG_TEXT:
            return list(self.backend.encode(clean, add_special_tokens=add_special_tokens).ids)
        found = self.backend.encode_batch_fast([clean], add_special_tokens=add_special_tokens)
        return list(found[0].ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids; ids without a token give nothing."""
        return str(self.backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, as it is spelt in the vocabulary."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    def surface(self, token_id: int) -> str | None:
        """A token as it is spelt in the vocabulary; None for an id without a token."""
        if token_id not in self._surfaces:
            self._surfaces[token_id] = self.backend.id_to_token(token_id)
        return self._surfaces[token_id]

    @cached_property
    def decoder_kinds(self) -> tuple[str, ...]:
        """The steps of the decoder by their names in tokenizer.json; empty without a decoder."""
        if self.backend.decoder is None:
            return ()
        return tuple(_kinds(json.loads(self.backend.decoder.__getstate__())))


def _kinds(decoder: dict[str, Any]) -> list[str]:
    if decoder["type"] == "Sequence":
        return [kind for step in decoder["decoders"] for kind in _kinds(step)]
    return [decoder["type"]]
