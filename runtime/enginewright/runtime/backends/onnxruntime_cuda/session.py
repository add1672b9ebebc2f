"""An ONNX Runtime session on the CUDA provider, and on no other.

ONNX Runtime takes the CPU where CUDA cannot be had, with a line in its log. Here that is an error,
for the whole model and for any node of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from enginewright.runtime.backends import onnx_runtimes, repair
from enginewright.runtime.backends.onnxruntime_session import LOAD_ERRORS, ort, session_options
from enginewright.runtime.errors import DeviceError, MissingDependencyError

PROVIDER = "CUDAExecutionProvider"
_LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")


def open_session(model: Path, stream: int) -> Any:
    """The model's session; all that it runs is queued on ``stream``, a CUDA stream's address.

    Raises MissingDependencyError where the CUDA provider, or a library that it needs, is not
    installed, DeviceError where the GPU does not run the model.
    """
    check_installed(ort.get_available_providers(), onnx_runtimes())
    _preload()
    options = session_options(threads=1)  # the host has nothing to compute
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    wanted = [(PROVIDER, provider_options(stream))]
    try:
        with _quiet():
            session = ort.InferenceSession(str(model), options, providers=wanted, enable_fallback=0)
    except LOAD_ERRORS as error:
        _check_libraries()
        raise _refused(model, str(error)) from error
    check_providers(session.get_providers(), model)
    return session


def check_installed(available: Sequence[str], installed: Set[str]) -> None:
    """Raise MissingDependencyError unless the ``available`` providers have CUDA's among them.

    ``installed``: the distributions of ONNX Runtime.
    """
    if PROVIDER not in available:
        raise MissingDependencyError(
            f"target 'cuda' needs onnxruntime-gpu; the ONNX Runtime that is installed has no "
            f"{PROVIDER} (it has {', '.join(available)}). {repair('cuda', installed)}"
        )


def check_providers(found: Sequence[str], model: Path) -> None:
    """Raise DeviceError for a session that does not run on CUDA first of all."""
    if not found or found[0] != PROVIDER:
        raise _refused(model, f"it fell back to {', '.join(found) or 'no provider'}")


def provider_options(stream: int) -> dict[str, str]:
    """How the CUDA provider runs. Memory grows by what is asked for: the cache is not in it."""
    return {
        "device_id": "0",
        "has_user_compute_stream": "1",
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
        "enable_cuda_graph": "1",
        "enable_skip_layer_norm_strict_mode": "1",
    }


def run_options(graph: int | None) -> Any:
    """Of a run that is captured as the CUDA graph of that number, or replays it; None: of neither.

    A run only queues its work; whoever wants its results waits for the stream.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What opening a session logs for the process is raised here, or of no use."""
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # what it is when the library is loaded


def _preload() -> None:
    """Load the libraries that the provider needs from NVIDIA's Python packages, if they are there.

    What it cannot load it prints; whether that matters, the session tells.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _check_libraries() -> None:
    """Raise MissingDependencyError where the CUDA provider itself cannot be loaded.

    The reason is one of the things that ONNX Runtime only logs.
    """
    folder = Path(ort.__file__).parent / "capi"
    for name in _LIBRARIES:
        if not (folder / name).is_file():
            continue
        try:
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MissingDependencyError(
                f"target 'cuda': ONNX Runtime's {PROVIDER} cannot be loaded ({error}); it needs "
                f"CUDA {ort.cuda_version} and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            ) from error


def _refused(model: Path, reason: str) -> DeviceError:
    return DeviceError(
        f"{model}: onnxruntime {ort.__version__} does not run this engine on the GPU ({reason}). "
        f"enginewright doctor tells what is missing; an artifact of target cpu runs without a GPU",
        "engine_refused",
    )
