"""Token ids to text, one token at a time: no half characters, exact stop strings.

What is streamed, joined, is the decoding of prompt and output without the prompt's decoding.
Two streams decode: ByteStream for byte-level vocabularies, where every token is a run of
bytes, and WindowStream for all others, which decodes the tokens since a recent boundary.
StopScanner then cuts at stop strings.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence
from typing import Protocol, Self

from enginewright.runtime.text.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """The text of one request.

    ``push`` and ``finish`` return what is safe to show: characters that no later token can
    change and that cannot belong to a stop string. Once ``stop_reason`` is set the text is cut
    (before the stop string, or after it with ``include_stop``) and nothing may be pushed.
    Stop strings do not count in the first ``min_tokens`` tokens. Of several, the one that is
    complete first ends the text, and of those the longest, however the text was split into
    tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._stream = _open_stream(tokenizer, hidden, prompt_token_ids)
        self._scanner = StopScanner(stop, include_stop)
        self._parts: list[str] = []
        self._min_tokens = min_tokens
        self._pushed = 0
        self._finished = False

    @property
    def text(self) -> str:
        """Everything returned so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the text."""
        return self._scanner.found

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is now safe, often empty."""
        assert not self._finished, "the text has ended"
        assert self.stop_reason is None, "a stop string has ended the text"
        self._pushed += 1
        shown = self._emit(self._stream.push(token_id))
        if self.stop_reason is None and self._stops_if_last():
            shown += self._emit(self._stream.finish())
        return shown

    def fork(self) -> Self:
        """A copy that goes its own way: another continuation of the same tokens."""
        twin = copy.copy(self)
        twin._stream = self._stream.fork()
        twin._scanner = copy.copy(self._scanner)
        twin._parts = list(self._parts)
        return twin

    def finish(self) -> str:
        """No token follows: return what was held back."""
        if self._finished or self.stop_reason is not None:
            return ""
        self._finished = True
        shown = self._emit(self._stream.finish())
        if self.stop_reason is None:
            shown += self._keep(self._scanner.flush())
        return shown

    @property
    def _exempt(self) -> bool:
        return self._pushed <= self._min_tokens

    def _stops_if_last(self) -> bool:
        """Whether text that is not yet sure completes a stop string: then it is the last."""
        return self._scanner.would_stop(self._stream.unsure(), self._exempt)

    def _emit(self, text: str) -> str:
        return self._keep(self._scanner.scan(text, self._exempt))

    def _keep(self, text: str) -> str:
        if text:
            self._parts.append(text)
        return text


class StopScanner:
    """Passes text on up to the first stop string; holds back what may be the start of one."""

    def __init__(self, stop: tuple[str, ...], include_stop: bool) -> None:
        assert all(stop), "a stop string is never empty"
        self.found: str | None = None
        self._stop = stop
        self._include = include_stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""

    def scan(self, text: str, exempt: bool = False) -> str:
        """Take more text; return what can no longer be part of a stop string.

        No stop string ends in text that is ``exempt``.
        """
        if not self._stop or not text:
            return text
        checked = len(self._held)
        buffer = self._held + text
        match = None if exempt else self._first_match(buffer, checked)
        if match is not None:
            start, self.found = match
            self._held = ""
            return buffer[: start + len(self.found)] if self._include else buffer[:start]
        split = self._possible_start(buffer)
        self._held = buffer[split:]
        return buffer[:split]

    def would_stop(self, text: str, exempt: bool = False) -> bool:
        """Whether ``scan`` would find a stop string."""
        if exempt or not text or not self._stop:
            return False
        return self._first_match(self._held + text, len(self._held)) is not None

    def flush(self) -> str:
        """The text held back, when no more follows."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str, checked: int) -> tuple[int, str] | None:
        """Where the first complete stop string starts; it ends after ``checked`` characters."""
        matches = []
        for stop in self._stop:
            start = buffer.find(stop, max(0, checked - len(stop) + 1))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        return min(matches)[1:] if matches else None

    def _possible_start(self, buffer: str) -> int:
        """Where the longest end of the buffer begins that is the beginning of a stop string."""
        for start in range(max(0, len(buffer) - self._longest + 1), len(buffer)):
            end = buffer[start:]
            if any(len(end) < len(stop) and stop.startswith(end) for stop in self._stop):
                return start
        return len(buffer)


class _Stream(Protocol):
    """Text that later tokens cannot change, from ids; the rest at the end."""

    def push(self, token_id: int) -> str: ...

    def unsure(self) -> str:
        """Text of complete characters that holds only if no token follows; may be cut short."""
        ...

    def finish(self) -> str: ...

    def fork(self) -> Self: ...


def _open_stream(tokenizer: Tokenizer, hidden: frozenset[int], prompt: Sequence[int]) -> _Stream:
    if set(tokenizer.decoder_kinds) - {"Fuse"} == {"ByteLevel"}:
        return ByteStream(tokenizer, hidden, prompt)
    return WindowStream(tokenizer, hidden, prompt)


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte, and the byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in shown}
    for byte in range(256):
        if byte not in shown:
            alphabet[chr(0x100 + len(alphabet) - len(shown))] = byte
    return alphabet


_BYTE_OF = _byte_alphabet()
_LONGEST_CHARACTER = 4
_LONGEST_RUN_LOOKED_AT = 64


def _bytes_of(surface: str) -> bytes:
    """The bytes of a byte-level token; a token with other characters is text as it stands."""
    values = [_BYTE_OF.get(character) for character in surface]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else surface.encode()


class ByteStream:
    """Byte-level vocabularies: the bytes of the tokens through an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        seen = b""
        for token in reversed(prompt):
            seen = self._bytes(token) + seen
            if len(seen) >= _LONGEST_CHARACTER:
                break
        self._decoder.decode(seen)
        # What the prompt's own decoding shows of an unfinished character: U+FFFD, once or twice.
        self._prompts_end = self._decoder.getstate()[0].decode("utf-8", "replace")

    def push(self, token_id: int) -> str:
        return self._without_prompt(self._decoder.decode(self._bytes(token_id)))

    def unsure(self) -> str:
        return ""

    def finish(self) -> str:
        return self._without_prompt(self._decoder.decode(b"", final=True))

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin._decoder = copy.copy(self._decoder)
        return twin

    def _bytes(self, token_id: int) -> bytes:
        surface = None if token_id in self._hidden else self._tokenizer.surface(token_id)
        return b"" if surface is None else _bytes_of(surface)

    def _without_prompt(self, text: str) -> str:
        if text and self._prompts_end:
            text, self._prompts_end = _beyond(self._prompts_end, text), ""
        return text


class WindowStream:
    """Any decoder: decodes the tokens since the last boundary and shows what is new.

    A boundary lies behind a token that later tokens leave as it is. The window always begins
    with tokens that were shown, so that rules for the start of a text (a stripped space) do not
    apply to what follows. Tokens of byte fallback are decoded a run at a time: one bad byte
    turns the whole run into U+FFFD, so a run is only sure when it has ended.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._byte_fallback = "ByteFallback" in tokenizer.decoder_kinds
        self._window = self._shown_tail(prompt)
        self._context = self._sure = len(self._window)
        self._shown = self._decode(self._window)

    def push(self, token_id: int) -> str:
        if not self._visible(token_id):
            return ""
        self._window.append(token_id)
        if self._is_byte(token_id):
            return ""
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) and self._has_part_of_character(token_id, text):
            return ""
        fresh = _beyond(self._shown, text)
        self._start_at_boundary(text)
        return fresh

    def unsure(self) -> str:
        held = len(self._window) - self._sure
        if not 0 < held <= _LONGEST_RUN_LOOKED_AT:
            return ""
        text = self.finish()
        return "" if _REPLACEMENT in text else text

    def finish(self) -> str:
        text = self._decode(self._window)
        return _beyond(self._shown, text)

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin._window = list(self._window)
        return twin

    def _start_at_boundary(self, text: str) -> None:
        """Drop the old context if what came since shows something, so that it can be the new."""
        recent = self._window[self._context :]
        decoded = self._decode(recent)
        if decoded:
            self._window, self._shown = recent, decoded
            self._context = len(recent)
        else:
            self._shown = text
        self._sure = len(self._window)

    def _shown_tail(self, prompt: Sequence[int]) -> list[int]:
        """The end of the prompt back to a token that shows something, and whole characters."""
        tail: list[int] = []
        for token in reversed(prompt):
            if not self._visible(token):
                continue
            tail.insert(0, token)
            text = "" if self._is_byte(token) else self._decode([token])
            if text and not self._has_part_of_character(token, text):
                break
        return tail

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""

    def _visible(self, token_id: int) -> bool:
        return token_id not in self._hidden and self._tokenizer.surface(token_id) is not None

    def _has_part_of_character(self, token_id: int, text: str) -> bool:
        """Whether U+FFFD in the text that ends in the token may be half a character of it."""
        surface = self._tokenizer.surface(token_id) or ""
        return _REPLACEMENT in text and _REPLACEMENT not in surface

    def _is_byte(self, token_id: int) -> bool:
        """Whether byte fallback reads the token as one byte, spelt like <0x0A>."""
        surface = self._tokenizer.surface(token_id) if self._byte_fallback else None
        return (
            surface is not None
            and len(surface) == 6
            and surface.startswith("<0x")
            and surface.endswith(">")
            and all(digit in "0123456789abcdefABCDEF" for digit in surface[3:5])
        )


def _beyond(shown: str, text: str) -> str:
    """What the text holds behind its common beginning with what was shown."""
    if text.startswith(shown):
        return text[len(shown) :]
    pairs = enumerate(zip(shown, text, strict=False))
    same = next((at for at, (old, new) in pairs if old != new), len(text))
    return text[same:]
