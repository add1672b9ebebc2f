"""A progress bar over the prompts of a call."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from enginewright.runtime.errors import ArgumentError, RequestError

UseTqdm: TypeAlias = bool | Callable[..., Any]
"""True draws a bar where stderr is a terminal; a tqdm of one's own is always called."""

_LABEL = "Processed prompts"


def check_progress(use_tqdm: Any) -> None:
    """Refuse what cannot say whether, and with what, to draw."""
    if not isinstance(use_tqdm, bool) and not callable(use_tqdm):
        raise RequestError(
            f"use_tqdm={use_tqdm!r:.80} is not legal: it must be True, False, or a function with "
            f"tqdm's parameters"
        )


@contextlib.contextmanager
def progress(total: int, use_tqdm: UseTqdm) -> Iterator[Callable[[int], object]]:
    """What to call with the number of prompts that have ended since the last call."""
    if isinstance(use_tqdm, bool):
        if not use_tqdm or not total or not sys.stderr.isatty():
            yield lambda count: None
            return
        make = _tqdm()
    else:
        make = use_tqdm
    bar = make(total=total, desc=_LABEL, dynamic_ncols=True)
    if not callable(getattr(bar, "update", None)) or not callable(getattr(bar, "close", None)):
        raise ArgumentError(
            f"use_tqdm={use_tqdm!r:.80} gave a {type(bar).__name__}: it must give a bar with "
            f"update(count) and close(), as tqdm does"
        )
    try:
        yield bar.update
    finally:
        bar.close()


def _tqdm() -> Callable[..., Any]:
    """The package's, which comes with most others; a small bar of our own without it."""
    try:
        found: Callable[..., Any] = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        return _Bar
    return found


class _Bar:
    def __init__(self, total: int, desc: str, dynamic_ncols: bool) -> None:
        import click

        self._shown = click.progressbar(length=total, label=desc, file=sys.stderr)
        self._shown.render_progress()

    def update(self, count: int) -> None:
        self._shown.update(count)

    def close(self) -> None:
        self._shown.render_finish()
