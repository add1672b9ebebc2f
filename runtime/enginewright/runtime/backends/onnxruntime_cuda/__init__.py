"""Target cuda: an ONNX Runtime session on an NVIDIA GPU, its cache on the device."""

from __future__ import annotations

from contextlib import ExitStack

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends import onnx_runtimes
from enginewright.runtime.backends.onnxruntime_cuda.engine import CudaEngine
from enginewright.runtime.backends.onnxruntime_cuda.session import check_installed, open_session
from enginewright.runtime.backends.onnxruntime_session import ort
from enginewright.runtime.cuda.driver import Device, release_quietly
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.doctor.load import check_device
from enginewright.runtime.engine import Engine


def open_engine(
    artifact: Artifact, entry: EngineEntry, threads: int | None, *, in_turns: bool
) -> Engine:
    """Load the engine onto the first visible GPU. ``threads``, ``in_turns`` mean nothing here.

    Raises MissingDependencyError for packages, DeviceError for the driver and the GPU.
    """
    check_installed(ort.get_available_providers(), onnx_runtimes())
    for file in entry.files:
        artifact.file(file)
    with ExitStack() as owned:
        device = Device()
        owned.callback(release_quietly, device.close)
        check_device(artifact, entry, device.facts())
        stream = Stream()
        owned.callback(release_quietly, stream.close)
        session = open_session(artifact.file(entry.model), stream.handle)
        invariant = artifact.manifest.chunk_invariant(entry.plan)
        engine = CudaEngine(session, entry, device, stream, chunk_invariant=invariant)
        engine.own(owned.pop_all())
    return engine
