"""The build, top to bottom: a recipe goes in, a published artifact comes out."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from enginewright.builder.cache import cached_file, code_digest, digest, tool_versions
from enginewright.builder.calibration import kv_scales
from enginewright.builder.conformance import check_conformance
from enginewright.builder.export import CacheShape, Exported, attach_weights, export
from enginewright.builder.families import Family, check_config, family_of
from enginewright.builder.families.heads import check_heads
from enginewright.builder.memory import StageMeter
from enginewright.builder.passes.reduce_logits import TOP_LOGITS
from enginewright.builder.publish import EVIDENCE, hash_files, publish, staging, write_json
from enginewright.builder.recipe import KVCacheSpec, Recipe, TensorRTSpec
from enginewright.builder.reference import make_reference
from enginewright.builder.source import Source, open_source
from enginewright.builder.targets import CompileRequest, Target, TensorRTOptions, target_of
from enginewright.builder.tuning import tune
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.local_artifacts import BuiltFrom, remember_artifact
from enginewright.runtime.artifact.manifest import (
    MANIFEST_NAME,
    EngineEntry,
    LimitsEntry,
    Manifest,
    SamplingDefault,
    SourceEntry,
    TuningEntry,
)
from enginewright.runtime.conformance import REFERENCE_FILE, Reference
from enginewright.runtime.errors import ConformanceError, RecipeError
from enginewright.runtime.text.tokenizer import Tokenizer

Progress = Callable[[str], None]
_COMPARED_TOKENS = 64
_SAMPLING_KEYS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def build(
    recipe: Recipe,
    output: Path,
    *,
    progress: Progress,
    debug_precision: bool = False,
    tuned: bool = False,
) -> Path:
    """Build the artifact ``output / recipe.name`` and return its path.

    ``debug_precision``: where conformance fails, compare layer by layer, and say where it starts.
    ``tuned``: the plan that is the fastest on this machine is preferred, not the target's first.
    Raises BuildError (and below); whatever fails, an artifact of an earlier build stays as it was.
    """
    run, place = _Run(progress), output / f"{recipe.name}.debug"
    with staging(output, recipe.name) as folder:
        with run.stage("source"):
            source = open_source(recipe.source)
            built_from = BuiltFrom.of(source.origin.location)
            family = family_of(source.architecture)
            config = source.model_config()
            check_config(source.architecture, config)
            check_heads(recipe.target, config, recipe.attention or "native")
            source.check()
            recipe.check_positions(source.positions)
            target = target_of(recipe.target)
            target.check(recipe.attention or "native")
            if tuned and target.interpreted:
                raise RecipeError(
                    f"--tune times plans by running them, which target {recipe.target!r} leaves to "
                    f"the machine with its device: leave --tune out; legal with target 'cpu'"
                )
            if debug_precision:
                target.check_debug_precision(recipe.precision, recipe.attention or "native")
            source.write_tokenizer(folder)
        with run.stage("export"):
            exported = _exported(config, family)
            model = attach_weights(exported, source.weight)
        with run.stage("reference"):
            reference = _reference(recipe, source, folder)
        with run.stage("compile"):
            request = _request(recipe, source, exported, reference, folder, progress)
            engines = target.compile(model, request)
        tools = tool_versions() | dict(target.tools(engines))
        _write_manifest(recipe, source, engines, folder, tools, {})
        with run.stage("conformance"):
            interpreted = model if target.interpreted else None
            with _compared(target, model, reference, place if debug_precision else None):
                found = check_conformance(recipe, reference, folder, engines, interpreted)
        _write_manifest(recipe, source, engines, folder, tools, found)
        if tuned:
            with run.stage("tuning"):
                engines, tuning = tune(folder, engines)
            _write_manifest(recipe, source, engines, folder, tools, found, tuning)
        write_json(folder / EVIDENCE / "build.json", {"stages": run.stages})
        publish(folder, output / recipe.name)
    remember_artifact(output / recipe.name, built_from, source.digest)
    return output / recipe.name


class _Run:
    """Tells of each stage and notes what it took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._progress(f"{name} ...")
        with StageMeter() as meter:
            yield
            gc.collect()
        self.stages[name] = {
            "seconds": round(meter.seconds, 3),
            "anonymous_growth_bytes": meter.anonymous_growth,
        }
        grown = meter.anonymous_growth / 1e6
        self._progress(f"{name}: {meter.seconds:.1f} s, peak anonymous memory +{grown:.0f} MB")


def _exported(config: PreTrainedConfig, family: Family) -> Exported:
    """The traced architecture, from the cache where the same one was traced before."""
    key = digest(
        {
            "config": config.to_dict(),
            "family": family.architecture,
            "tools": tool_versions(),
            "code": code_digest(),
        }
    )

    def trace(path: Path) -> None:
        exported = export(config, family)
        exported.model.metadata_props["caches"] = json.dumps(
            [[cache.kv_heads, cache.head_dim] for cache in exported.caches]
        )
        exported.model.metadata_props["owners"] = json.dumps(dict(exported.owners))
        ir.save(exported.model, path)

    model = ir.load(cached_file("export", key, "graph.onnx", trace))
    caches = json.loads(model.metadata_props.pop("caches"))
    owners = json.loads(model.metadata_props.pop("owners"))
    return Exported(model, tuple(CacheShape(*cache) for cache in caches), owners)


def _request(
    recipe: Recipe,
    source: Source,
    exported: Exported,
    reference: Reference,
    folder: Path,
    progress: Progress,
) -> CompileRequest:
    cache, tensorrt = recipe.kv_cache or KVCacheSpec(), recipe.tensorrt or TensorRTSpec()
    return CompileRequest(
        folder=folder,
        precision=recipe.precision,
        limits=LimitsEntry(recipe.limits.max_context, recipe.limits.max_batch),
        caches=exported.caches,
        attention=recipe.attention or "native",
        capabilities=recipe.capabilities,
        kv_dtype=cache.dtype,
        block_size=cache.block_size,
        kv_scales=_kv_scales(cache, source, reference),
        top_logits=(recipe.top_logits or TOP_LOGITS) if recipe.logits == "device" else 0,
        tensorrt=TensorRTOptions(tensorrt.version_compatible, tensorrt.hardware_compatibility),
        progress=progress,
    )


def _kv_scales(
    cache: KVCacheSpec, source: Source, reference: Reference
) -> Mapping[str, NDArray[np.float32]]:
    """Measured on the prompts and the model's answers, or in the cache where they were before.

    The text that conformance scores is left out: it says how the scales do on what they never saw.
    """
    dtype = cache.dtype
    if dtype not in ("int8", "fp8"):
        return {}
    key = digest({"source": source.digest, "dtype": dtype, "code": code_digest()})

    def measure(path: Path) -> None:
        answers = zip(reference.prompts(), reference.greedy_ids.tolist(), strict=True)
        windows = [[*prompt, *answer] for prompt, answer in answers]
        np.savez(path, **kv_scales(source.reference_model(), windows, dtype))  # type: ignore[arg-type]

    with np.load(cached_file("kv_scales", key, "scales.npz", measure)) as found:
        return dict(found)


def _reference(recipe: Recipe, source: Source, folder: Path) -> Reference:
    """The Hugging Face answers, from the cache where the same source was asked the same before."""
    max_context = recipe.limits.max_context
    key = digest(
        {
            "source": source.digest,
            "max_context": min(max_context, 1024),
            "tools": tool_versions(),
            "code": code_digest(),
            "tokenizer": sha256_file(folder / "tokenizer.json"),
        }
    )

    def ask(path: Path) -> None:
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        make_reference(source.reference_model(), tokenizer, max_context).save(path)

    reference = Reference.load(cached_file("reference", key, "reference.npz", ask))
    reference.save(folder / REFERENCE_FILE)
    return reference


@contextmanager
def _compared(
    target: Target, model: ir.Model, reference: Reference, place: Path | None
) -> Iterator[None]:
    """Add to a failed conformance where the layers differ; into the folder ``place``, if any."""
    try:
        yield
    except ConformanceError as error:
        if place is None:
            raise
        tokens = reference.text_ids[0, :_COMPARED_TOKENS].tolist()
        said = target.compare_layers(model, tokens, place)
        raise ConformanceError(f"{error}\nlayer by layer: {said}") from error


def _write_manifest(
    recipe: Recipe,
    source: Source,
    engines: tuple[EngineEntry, ...],
    folder: Path,
    tools: Mapping[str, str],
    conformance: dict[str, dict[str, Any]],
    tuning: TuningEntry | None = None,
) -> None:
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    lock = {"recipe": recipe.as_dict(), "source_digest": source.digest, "tools": tools}
    write_json(folder / "lock.json", lock)
    manifest = Manifest(
        name=recipe.name,
        source=SourceEntry(
            source.kind, source.reference, source.digest, source.architecture, source.revision
        ),
        recipe=recipe.as_dict(),
        engines=engines,
        files=hash_files(folder),
        tools=tools,
        eos_token_ids=tuple(sorted(source.eos_token_ids)),
        bos_token_id=source.bos_token_id,
        sampling_defaults=_sampling_defaults(source),
        conformance=conformance,
        tuning=tuning,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _sampling_defaults(source: Source) -> dict[str, SamplingDefault]:
    given = source.generation_config
    return {
        ours: SamplingDefault(given[theirs], f"generation_config.json: {theirs}")
        for theirs, ours in _SAMPLING_KEYS.items()
        if given.get(theirs) is not None
    }
