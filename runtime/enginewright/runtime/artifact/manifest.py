"""The manifest: the one schema that the builder writes and the runtime reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from enginewright.runtime.errors import ArtifactError, IntegrityError, SchemaVersionError
from enginewright.runtime.processor import INSTRUCTION_SETS, InstructionSet

SCHEMA_VERSION = 4
READ_VERSIONS = (1, 2, 3, 4)
"""2 added ``nvidia`` to engines and ``block_size`` to their caches; 3 ``reproducible``; 4
``cpu_kernels``."""
MANIFEST_NAME = "manifest.json"
LIBRARIES = {"tensorrt_rtx": "tensorrt_rtx", "tensorrt": "tensorrt", "cuda": "onnxruntime"}
"""By target for NVIDIA GPUs, the library that runs its engines."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the artifact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class SourceEntry:
    """Where the weights came from. ``digest`` is ``sha256:...`` over the source's files."""

    kind: Literal["checkpoint", "gguf", "package", "hub"]
    reference: str
    digest: str
    architecture: str
    revision: str | None = None


@dataclass(frozen=True)
class TensorEntry:
    """One input or output of an engine; a symbolic dimension is a string."""

    name: str
    direction: Literal["input", "output"]
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class KVEntry:
    """The cache: ``k_cache.i`` and ``v_cache.i`` [blocks, kv_heads, size, head_dim] a layer; with
    ``paged`` on the CPU ``k_cache.i`` is [blocks, kv_heads, head_dim, size].

    ``block_size``: the size, where the engine was built for one; 0: the pool chooses it.
    """

    layout: Literal["slots", "paged"]
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_size: int = 0


@dataclass(frozen=True)
class LimitsEntry:
    """Tokens a row may hold (prompt and output), and rows that may run together."""

    max_context: int
    max_batch: int


@dataclass(frozen=True)
class StepsEntry:
    """Rows that each kind of step may hold, see engine.StepSupport."""

    decode: int
    prefill: int
    extend: int
    tokens: int = 0


@dataclass(frozen=True)
class ProfileEntry:
    """An optimization profile: the [lowest, best, highest] shape of each input of the engine."""

    name: Literal["decode", "prefill"]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class PluginEntry:
    """A plugin that the engine calls.

    ``abi`` digests what the op's inputs, attributes and kernels' arguments mean: a runtime with
    another one does not run the engine. ``kernels`` is the index of the kernels that it launches,
    one of the engine's files. ``embedded``: plugin and kernels lie in the engine file as well, as
    code for the processor.
    """

    name: str
    version: str
    namespace: str
    abi: str
    kernels: str
    embedded: bool = False


@dataclass(frozen=True)
class NvidiaEntry:
    """What an engine for NVIDIA GPUs cannot tell where there is no GPU.

    ``library`` and ``library_version``: what built it. ``capabilities``: compute capabilities that
    it runs on, such as "8.6"; ``later``: and on those above the highest as well. ``aliases``: each
    output that shares the memory of an input. ``weights_bytes``: device memory that the loaded
    engine takes at least. ``host_code``: the engine file brings code for the processor, a plugin
    or a runtime of its own.
    """

    library: Literal["tensorrt_rtx", "tensorrt", "onnxruntime"]
    library_version: str
    capabilities: tuple[str, ...]
    later: bool
    profiles: tuple[ProfileEntry, ...]
    aliases: Mapping[str, str]
    plugins: tuple[PluginEntry, ...]
    weights_bytes: int
    host_code: bool = False


@dataclass(frozen=True)
class EngineEntry:
    """One engine of the artifact.

    ``fingerprint`` digests the engine's files; ``plan`` names how it was lowered;
    ``model`` is the file that the backend opens, ``files`` are all that it needs. ``library`` is
    the one of them that holds operators of our own. ``platform``: the only one that code for the
    processor, there or in the engine file, is for. ``nvidia`` is there for the targets that run on
    such GPUs. ``reproducible``: the same inputs give the same bytes; where not, the fingerprint
    digests the inputs instead of the files. ``cpu_kernels``: the instruction set to which the
    operators in ``library`` are held on the processor that the build was tuned on; on any other,
    and if None, they take the best that is there.
    """

    target: str
    plan: str
    precision: str
    fingerprint: str
    model: str
    files: tuple[str, ...]
    io: tuple[TensorEntry, ...]
    vocab_size: int
    kv: KVEntry
    limits: LimitsEntry
    steps: StepsEntry
    batch_invariant: bool
    library: str | None = None
    platform: str | None = None
    nvidia: NvidiaEntry | None = None
    reproducible: bool = True
    cpu_kernels: InstructionSet | None = None

    @property
    def top_logits(self) -> int:
        """How many logits of each row come to the host, see engine.ReducedLogits; 0: all."""
        found = (tensor.shape[-1] for tensor in self.io if tensor.name == "top_logits")
        return int(next(found, 0))


@dataclass(frozen=True)
class SamplingDefault:
    """A sampling default of the model, and the file and key that it came from."""

    value: float | int
    origin: str


@dataclass(frozen=True)
class TuningEntry:
    """What the build measured to put the engines into order: ``seconds`` of each plan and work.

    ``cpu_kernels``: of a plan that was timed with the kernels of several instruction sets, the
    seconds of each of these and work; ``seconds`` has those of the plan's ``cpu_kernels``.
    ``chosen_by``: the work that decided; "all": the geometric mean over them.
    """

    processor: str
    threads: int
    seconds: Mapping[str, Mapping[str, float]]
    cpu_kernels: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    chosen_by: str = "all"


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime knows of an artifact before it opens a file of it.

    ``recipe``, ``tools`` and ``conformance`` (by plan) are for people and for verify, but for
    ``chunk_invariant`` and ``step_invariant``; the rest drives the runtime. ``engines`` stand in
    the order of preference; ``tuning`` says why, if that was measured. ``eos_token_ids`` is the
    union over tokenizer, config and generation config.
    """

    name: str
    source: SourceEntry
    recipe: Mapping[str, Any]
    engines: tuple[EngineEntry, ...]
    files: Mapping[str, FileEntry]
    tools: Mapping[str, str]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    sampling_defaults: Mapping[str, SamplingDefault]
    conformance: Mapping[str, Any] = field(default_factory=dict)
    tuning: TuningEntry | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def total_bytes(self) -> int:
        """Of all files; equal ones are one file with several names."""
        return sum({entry.sha256: entry.size for entry in self.files.values()}.values())

    def chunk_invariant(self, plan: str) -> bool:
        """Whether the plan's logits were found bitwise the same in one step and in several."""
        return self._is_zero(plan, "chunk_difference")

    def step_invariant(self, plan: str) -> bool:
        """And the same where the tokens were computed one by one."""
        return self.chunk_invariant(plan) and self._is_zero(plan, "step_difference")

    def _is_zero(self, plan: str, measure: str) -> bool:
        found = self.conformance.get(plan, {}).get("measures", {})
        return bool(found.get(measure) == 0.0)

    def to_json(self) -> str:
        """The sealed text of all fields."""
        return seal(asdict(self))


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest's text; ``where`` names it in errors.

    Raises SchemaVersionError for another schema, IntegrityError for an altered text, ArtifactError
    for anything malformed.
    """
    try:
        data = json.loads(text)
        version = data["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{where}: not a manifest of Enginewright ({error!r})") from error
    if version not in READ_VERSIONS:
        raise SchemaVersionError(
            f"{where}: schema version {version!r} found, this runtime reads "
            f"{READ_VERSIONS[0]} to {READ_VERSIONS[-1]}; "
            f"rebuild the artifact with this version, or install the version that wrote it"
        )
    stated = data.pop("sha256", None)
    if stated != _digest(data):
        raise IntegrityError(
            f"{where}: altered since it was written (its own sha256 differs); build the artifact "
            f"again, or take it from where it came"
        )
    try:
        return _manifest(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: manifest is malformed ({error!r}); rebuild it") from error


def contradiction(entry: EngineEntry) -> str | None:
    """What the entry says of its GPU's software and no builder writes; None: nothing.

    Of targets that are unknown here nothing is known.
    """
    nvidia, library = entry.nvidia, LIBRARIES.get(entry.target)
    if nvidia is None:
        lacks = f"is for target {entry.target!r} and has no entry 'nvidia', which that needs"
        return None if library is None else lacks
    if entry.target == "cpu":
        return "is for target 'cpu' and has an entry 'nvidia', which is for GPUs"
    if library is not None and nvidia.library != library:
        return f"names library {nvidia.library!r}; target {entry.target!r} has {library!r}"
    if len(nvidia.plugins) > 1:
        return f"calls {len(nvidia.plugins)} plugins; there is one at most"
    for plugin in nvidia.plugins:
        if plugin.kernels not in entry.files:
            return f"names kernels {plugin.kernels!r}, which are none of its files"
    return None


def wrong_kernels(entry: EngineEntry, tuning: TuningEntry | None) -> str | None:
    """What the entry says of its kernels and no builder writes; None: nothing."""
    if entry.cpu_kernels is None:
        return None
    if entry.cpu_kernels not in INSTRUCTION_SETS:
        return f"has cpu_kernels {entry.cpu_kernels!r}; legal: {', '.join(INSTRUCTION_SETS)}"
    if entry.library is None:
        return f"has cpu_kernels {entry.cpu_kernels!r} and no library that they are in"
    if tuning is None or entry.cpu_kernels not in tuning.cpu_kernels.get(entry.plan, {}):
        return f"has cpu_kernels {entry.cpu_kernels!r}, of which no times are there"
    return None


def seal(data: Mapping[str, Any]) -> str:
    """Canonical text: sorted keys, two spaces, one final newline.

    ``sha256`` digests all other fields, so that an altered manifest is found out as well.
    """
    fields = {name: value for name, value in data.items() if name != "sha256"}
    return _canonical({**fields, "sha256": _digest(fields)})


def _canonical(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(data: Mapping[str, Any]) -> str:
    text = _canonical(data).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def _manifest(data: dict[str, Any]) -> Manifest:
    fields = dict(data)
    fields["source"] = SourceEntry(**data["source"])
    fields["engines"] = tuple(map(read_engine, data["engines"]))
    fields["files"] = {path: FileEntry(**entry) for path, entry in data["files"].items()}
    fields["eos_token_ids"] = tuple(data["eos_token_ids"])
    defaults = data["sampling_defaults"].items()
    fields["sampling_defaults"] = {name: SamplingDefault(**entry) for name, entry in defaults}
    fields["tuning"] = TuningEntry(**data["tuning"]) if data.get("tuning") else None
    return Manifest(**fields)


def read_engine(data: Mapping[str, Any]) -> EngineEntry:
    """An engine's entry from its plain data."""
    fields = dict(data)
    fields["files"] = tuple(data["files"])
    fields["io"] = tuple(
        TensorEntry(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in data["io"]
    )
    fields["kv"] = KVEntry(**data["kv"])
    fields["limits"] = LimitsEntry(**data["limits"])
    fields["steps"] = StepsEntry(**data["steps"])
    fields["nvidia"] = _nvidia(data["nvidia"]) if data.get("nvidia") else None
    return EngineEntry(**fields)


def _nvidia(data: dict[str, Any]) -> NvidiaEntry:
    fields = dict(data)
    fields["capabilities"] = tuple(data["capabilities"])
    fields["profiles"] = tuple(_profile(entry) for entry in data["profiles"])
    fields["plugins"] = tuple(PluginEntry(**entry) for entry in data["plugins"])
    return NvidiaEntry(**fields)


def _profile(data: dict[str, Any]) -> ProfileEntry:
    shapes = {
        name: tuple(tuple(shape) for shape in extremes) for name, extremes in data["shapes"].items()
    }
    return ProfileEntry(data["name"], shapes)  # type: ignore[arg-type]
