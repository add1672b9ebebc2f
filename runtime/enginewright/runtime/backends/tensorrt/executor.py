"""An execution context: one profile of an engine, its tensors bound by address.

A captured graph keeps what its context was told last, so each graph has a context of its own. All
contexts of an engine work in the same scratch memory, as they run one after another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from enginewright.runtime.backends.tensorrt.library import Messages
from enginewright.runtime.cuda.memory import DeviceBuffer
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.errors import DeviceError

Binding = tuple[str, int, tuple[int, ...] | None]
"""A tensor's name, its address, and an input's shape."""


class Executor:
    """A context on a stream. ``config``: of the library, see ``runtime_config``."""

    def __init__(
        self, engine: Any, config: Any, profile: int, scratch: DeviceBuffer, messages: Messages
    ) -> None:
        self._messages = messages
        self._profile, self._ready = profile, False
        self._context = self._done(engine.create_execution_context(config), "a context")
        self._context.set_device_memory(scratch.address, scratch.size)

    def queue(self, bindings: Iterable[Binding], stream: Stream) -> None:
        """Bind the tensors and queue a run."""
        if not self._ready:
            switched = self._context.set_optimization_profile_async(self._profile, stream.handle)
            self._done(switched, f"profile {self._profile}")
            self._ready = True
        for name, address, shape in bindings:
            if shape is not None:
                self._done(self._context.set_input_shape(name, shape), f"{name} of shape {shape}")
            self._done(self._context.set_tensor_address(name, address), f"the address of {name}")
        self._done(self._context.execute_async_v3(stream.handle), "a step")

    def capturable(self, stream: Stream) -> bool:
        """Whether a graph can be captured; full TensorRT does not tell, and tries."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream.handle))

    def close(self) -> None:
        self._context = None

    def _done(self, result: Any, what: str) -> Any:
        if not result:
            raise DeviceError(f"TensorRT refuses {what}: {self._messages.take()}", "device_failed")
        return result


def runtime_config(trt: Any, engine: Any, *, specialize: bool) -> Any:
    """How contexts of the engine run: in memory of ours, without graphs of the library's own.

    ``specialize``: TensorRT-RTX compiles kernels for a shape before it is run first, as a captured
    graph keeps those that ran while it was captured. Else it does so behind the steps that run.
    """
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    strategy = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategy is not None:
        chosen = strategy.EAGER if specialize else strategy.LAZY
        config.dynamic_shapes_kernel_specialization_strategy = chosen
    return config
