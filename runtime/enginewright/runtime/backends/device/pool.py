"""The cache on the device: for each layer and kind one buffer [blocks, kv_heads, size, head_dim].

With ``slots`` a block is a slot of the engine's full context. With ``paged`` there is one block
more than was asked for, the spare one, for what padding writes.

New memory is cleared: what a row has not written is never counted, but 0 times an undefined
number need not be 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends.device.planning import block_size
from enginewright.runtime.cuda.memory import DeviceBuffer
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.doctor.needs import kv_bytes_per_token
from enginewright.runtime.engine import BlockCopy


class DevicePool:
    """The cache's buffers. ``blocks`` does not count the spare one."""

    def __init__(self, entry: EngineEntry, stream: Stream) -> None:
        kv = entry.kv
        self.block_size = block_size(entry)
        self.blocks = 0
        self._stream = stream
        self._spare = int(kv.layout == "paged")
        self._heads, self._head_dim = kv.kv_heads, kv.head_dim
        per_token = kv_bytes_per_token(kv)
        assert per_token is not None, kv.dtype
        self._token_bytes = per_token // (2 * kv.layers * kv.kv_heads)
        names = [f"{kind}_cache.{i}" for i in range(kv.layers) for kind in "kv"]
        self._buffers = {name: DeviceBuffer(0, name) for name in names}

    @property
    def block_bytes(self) -> int:
        """Of one block, in one buffer."""
        return self._heads * self.block_size * self._token_bytes

    def bindings(self, first: int, rows: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Name, address and shape of each cache, for a step over the slots [first, first + rows)
        or, with ``paged``, over any blocks."""
        held = self.blocks + 1 if self._spare else rows
        shape = (held, self._heads, self.block_size, self._head_dim)
        for name, buffer in self._buffers.items():
            yield name, buffer.address + first * self.block_bytes, shape

    def resize(self, blocks: int) -> None:
        """Hold so many blocks, keeping the content of those that stay."""
        self.blocks = min(blocks, self.blocks)  # where memory runs out, every buffer has those
        kept = self.blocks * self.block_bytes
        size = (blocks + self._spare) * self.block_bytes
        for name, old in self._buffers.items():  # one by one: only one is held twice at a time
            new = DeviceBuffer(size, f"{blocks} blocks of {name}, of {len(self._buffers)} such,")
            if kept:
                self._stream.copy(new.address, old.address, kept)
            if size > kept:
                self._stream.clear(new.address + kept, size - kept)
            self._stream.synchronize()
            self._buffers[name] = new
            old.free()
        self.blocks = blocks

    def copy(self, each: BlockCopy) -> None:
        """Copy tokens of a block to another, behind all that the stream was given."""
        run = (each.end - each.start) * self._token_bytes
        pitch = self.block_size * self._token_bytes
        start = each.start * self._token_bytes
        for buffer in self._buffers.values():
            self._stream.copy_rows(
                buffer.address + each.destination * self.block_bytes + start,
                buffer.address + each.source * self.block_bytes + start,
                run,
                self._heads,
                (pitch, pitch),
            )

    def free(self) -> None:
        for buffer in self._buffers.values():
            buffer.free()
        self.blocks = 0
