"""The file of answers: a line for each request, written once, kept when the process is killed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.batch.lines import Line
from enginewright.server.wire import to_bytes, to_json


class BatchOutput:
    """Answers by the id of their line; what an earlier run wrote is read and kept.

    A last line without its end is of a run that was killed while it wrote: it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.errors = 0
        try:
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise EnginewrightError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise EnginewrightError(f"{path}: another batch is writing it") from error
        try:
            self._done = self._read()
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> int:
        """How many lines are answered."""
        return len(self._done)

    def has(self, line: Line) -> bool:
        """Whether the line is answered; EnginewrightError where the answer is to another line."""
        if line.id not in self._done:
            return False
        if self._done[line.id] != line.custom_id:
            raise EnginewrightError(
                f"{self._path}: the answer {line.id} is to custom_id {self._done[line.id]!r:.80}, "
                f"and line {line.number} of the input has {line.custom_id!r:.80}: it belongs to "
                f"another input; give a new output file"
            )
        return True

    def write(self, line: Line, status: int, body: Any) -> None:
        """Add the answer; an error's message stands beside it, too."""
        error = None
        if status >= 400:
            self.errors += 1
            told = body.get("error") if isinstance(body, Mapping) else None
            message = told.get("message") if isinstance(told, Mapping) else told
            error = {"code": status, "message": message}
        answer = {
            "id": line.id,
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": line.id, "body": body},
            "error": error,
        }
        data = to_bytes(to_json(answer) + "\n")
        while data:
            data = data[self._file.write(data) :]
        self._done[line.id] = line.custom_id

    def close(self) -> None:
        """Put what was written on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> dict[str, str | None]:
        done: dict[str, str | None] = {}
        whole = 0
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            for text in reader:
                if text.endswith(b"\n"):
                    name, custom_id, failed = self._answer(text)
                    done[name] = custom_id
                    self.errors += failed
                    whole += len(text)
        self._file.truncate(whole)
        return done

    def _answer(self, text: bytes) -> tuple[str, str | None, bool]:
        try:
            data = json.loads(text)
            return data["id"], data["custom_id"], data["error"] is not None
        except (ValueError, KeyError, TypeError) as error:
            raise EnginewrightError(
                f"{self._path} holds something else than a batch's answers ({text[:60]!r}): give a "
                f"new output file"
            ) from error
