"""TensorRT and TensorRT-RTX: the module, its messages, an engine from its file.

Both have the same Python interface but for a few names; what is missing in one is asked for by
``getattr``.
"""

from __future__ import annotations

import importlib
import mmap
from collections import deque
from pathlib import Path
from typing import Any, Literal

from enginewright.runtime.errors import DeviceError, MissingDependencyError

Name = Literal["tensorrt_rtx", "tensorrt"]
_EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}
_KEPT_MESSAGES = 5


def import_library(name: str) -> Any:
    """The module of that name. Raises MissingDependencyError with the pip command."""
    command = f"pip install 'enginewright[{_EXTRAS[name]}]'"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(name):
            raise
        raise MissingDependencyError(f"target {name!r} needs {name}: {command}") from error
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"target {name!r} needs {name}, which is installed but cannot be loaded ({error}): "
            f"{command} --force-reinstall"
        ) from error


class Messages:
    """The last errors that the library told; it raises few itself."""

    def __init__(self, trt: Any) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        self.logger = _logger(trt, self._lines)

    def take(self) -> str:
        """The errors since the last call, as one text."""
        text = "; ".join(self._lines).rstrip(". ") or "it gives no reason"
        self._lines.clear()
        return text


def _logger(trt: Any, lines: deque[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                lines.append(message)

    return Logger()


def load_engine(trt: Any, path: Path, messages: Messages, *, host_code: bool) -> tuple[Any, Any]:
    """The library's runtime and the engine of a file, which is mapped, not read.

    ``host_code``: the engine may bring code for the processor, which the user has allowed.
    Raises DeviceError where the library refuses the engine.
    """
    runtime = trt.Runtime(messages.logger)
    runtime.engine_host_code_allowed = host_code
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_validity(trt, runtime, content, path, messages)
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise _refused(trt, path, messages)
    return runtime, engine


def _check_validity(
    trt: Any, runtime: Any, content: mmap.mmap, path: Path, messages: Messages
) -> None:
    """Ask the library whether the engine fits this GPU; only TensorRT-RTX can tell."""
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is None:
        return
    validity, diagnostics = ask(content[: runtime.engine_header_size])
    if validity == trt.EngineValidity.INVALID:
        raise _refused(trt, path, messages, f" (diagnostics {int(diagnostics):#x})")


def _refused(trt: Any, path: Path, messages: Messages, more: str = "") -> DeviceError:
    return DeviceError(
        f"{path}: {trt.__name__} {trt.__version__} refuses the engine{more}: {messages.take()}. "
        f"Build the artifact again for this GPU; enginewright doctor tells more",
        "engine_refused",
    )
