"""What an engine on the device declares of itself, from its manifest entry."""

from __future__ import annotations

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends.device.planning import block_size
from enginewright.runtime.doctor.needs import kv_bytes_per_token
from enginewright.runtime.engine import EngineInfo, StepSupport


def describe(entry: EngineEntry, *, chunk_invariant: bool) -> EngineInfo:
    """What the engine declares of itself."""
    per_token = kv_bytes_per_token(entry.kv)
    assert per_token is not None, entry.kv.dtype
    steps = entry.steps
    return EngineInfo(
        vocab_size=entry.vocab_size,
        max_context=entry.limits.max_context,
        max_batch=entry.limits.max_batch,
        steps=StepSupport(steps.decode, steps.prefill, steps.extend, steps.tokens),
        kv_layout=entry.kv.layout,
        kv_bytes_per_token=per_token,
        batch_invariant=entry.batch_invariant,
        chunk_invariant=chunk_invariant,
        kv_block_size=block_size(entry),
    )
