"""The stages of a build that are cached: what each depends on, and what it makes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.cache import StageCache, digest, files_of, place_file
from enginewright.builder.calibration import kv_scales
from enginewright.builder.conformance import check_conformance
from enginewright.builder.export import CacheShape, Exported, export
from enginewright.builder.passes.reduce_logits import TOP_COUNT
from enginewright.builder.publish import write_json
from enginewright.builder.recipe import KVCacheSpec, TensorRTSpec
from enginewright.builder.reference import make_reference
from enginewright.builder.source import Source
from enginewright.builder.stage_inputs import Inputs, code_of, code_of_folder, flat, tools
from enginewright.builder.subject import Subject
from enginewright.builder.targets import CompileRequest, TensorRTOptions
from enginewright.builder.threads import one_thread
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.manifest import EngineEntry, LimitsEntry, read_engine
from enginewright.runtime.conformance import REFERENCE_FILE, Reference
from enginewright.runtime.cores import available_cores
from enginewright.runtime.processor import processor_name
from enginewright.runtime.text.tokenizer import Tokenizer

_REFERENCE_CONTEXT = 1024
"""Contexts from here on get the same reference."""
_ENGINES = "engines.json"
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_NOT_INPUTS = ("folder", "progress", "kv_scales", "caches")


@dataclass(frozen=True)
class Stages:
    """The cached stages of one build; each returns the same whether it ran or was taken over."""

    cache: StageCache
    subject: Subject

    def exported(self) -> Exported:
        """The traced architecture."""
        config, family = self.subject.config, self.subject.family

        def trace(folder: Path) -> None:
            made = export(config, family)
            made.model.metadata_props["caches"] = json.dumps(
                [[cache.kv_heads, cache.head_dim] for cache in made.caches]
            )
            made.model.metadata_props["owners"] = json.dumps(dict(made.owners))
            ir.save(made.model, folder / "graph.onnx")

        with self.cache.entry("export", self._export_inputs(), trace) as folder:
            model = ir.load(folder / "graph.onnx")
        caches = json.loads(model.metadata_props.pop("caches"))
        owners = json.loads(model.metadata_props.pop("owners"))
        return Exported(model, tuple(CacheShape(*cache) for cache in caches), owners)

    def held(self, artifact: Path) -> frozenset[str]:
        """Those of export and reference that the cache has; the artifact has its tokenizer."""
        asked = {"export": self._export_inputs(), "reference": self._reference_inputs(artifact)}
        return frozenset(name for name in asked if self.cache.holds(name, asked[name]))

    def reference(self, artifact: Path) -> Reference:
        """What the Hugging Face model answers; written into the artifact as well."""
        source, limits = self.subject.source, self.subject.recipe.limits
        tokenizer = artifact / "tokenizer.json"

        def ask(folder: Path) -> None:
            asked = Tokenizer.from_file(tokenizer)
            with one_thread():
                made = make_reference(source.reference_model(), asked, limits.max_context)
            made.save(folder / "reference.npz")

        with self.cache.entry("reference", self._reference_inputs(artifact), ask) as folder:
            place_file(folder / "reference.npz", artifact / REFERENCE_FILE)
        return Reference.load(artifact / REFERENCE_FILE)

    def kv_scales(self, reference: Reference) -> Mapping[str, NDArray[np.float32]]:
        """Of a quantized cache, measured on the prompts and the model's answers; else nothing.

        The text that conformance scores is left out: it says how they do on what they never saw.
        """
        cache, source = self.subject.recipe.kv_cache or KVCacheSpec(), self.subject.source
        dtype = cache.dtype
        if dtype not in ("int8", "fp8"):
            return {}
        answers = zip(reference.prompts(), reference.greedy_ids.tolist(), strict=True)
        windows = [[*prompt, *answer] for prompt, answer in answers]
        inputs: Inputs = {
            "source": source.digest,
            "dtype": dtype,
            "windows": hashlib.sha256(json.dumps(windows).encode()).hexdigest(),
            **code_of("enginewright.builder.calibration", *_source_modules(source)),
            **tools("torch", "transformers", "numpy"),
        }

        def measure(folder: Path) -> None:
            with one_thread():
                found: Mapping[str, Any] = kv_scales(source.reference_model(), windows, dtype)
            np.savez(folder / "scales.npz", **found)

        with (
            self.cache.entry("kv_scales", inputs, measure) as folder,
            np.load(folder / "scales.npz") as found,
        ):
            return dict(found)

    def request(
        self,
        caches: tuple[CacheShape, ...],
        reference: Reference,
        folder: Path,
        progress: Callable[[str], None],
    ) -> CompileRequest:
        """What the target is asked for, the engine to lie in ``folder``."""
        recipe = self.subject.recipe
        cache, tensorrt = recipe.kv_cache or KVCacheSpec(), recipe.tensorrt or TensorRTSpec()
        return CompileRequest(
            folder=folder,
            precision=recipe.precision,
            limits=LimitsEntry(recipe.limits.max_context, recipe.limits.max_batch),
            caches=caches,
            attention=recipe.attention or "native",
            capabilities=recipe.capabilities,
            kv_dtype=cache.dtype,
            block_size=cache.block_size,
            kv_scales=self.kv_scales(reference),
            top_logits=(recipe.top_logits or TOP_COUNT) if recipe.logits == "device" else 0,
            tensorrt=TensorRTOptions(tensorrt.version_compatible, tensorrt.hardware_compatibility),
            progress=progress,
        )

    def engines(self, model: ir.Model, request: CompileRequest) -> tuple[EngineEntry, ...]:
        """The engines' files in the request's folder; ``model`` is lowered where it is compared."""
        target, ran = self.subject.target, False
        own = target.inputs(request)
        if own is None:
            return target.compile(model, request)

        def compile_(folder: Path) -> None:
            nonlocal ran
            ran = True
            made = target.compile(model, replace(request, folder=folder))
            write_json(folder / _ENGINES, {"engines": [asdict(entry) for entry in made]})

        inputs = self._compile_inputs(request) | own
        with self.cache.entry("compile", inputs, compile_) as folder:
            found = json.loads((folder / _ENGINES).read_text("utf-8"))["engines"]
            for name in files_of(folder):
                if name != _ENGINES:
                    place_file(folder / name, request.folder / name)
        if target.interpreted and not ran:
            target.lower(model, request)
        return tuple(map(read_engine, found))

    def conformance(
        self,
        reference: Reference,
        artifact: Path,
        engines: tuple[EngineEntry, ...],
        interpreted: ir.Model | None,
    ) -> dict[str, dict[str, Any]]:
        """What the manifest says of each plan. Raises ConformanceError."""
        recipe = self.subject.recipe

        def check(folder: Path) -> None:
            found = check_conformance(recipe, reference, artifact, engines, interpreted)
            write_json(folder / "conformance.json", found)

        inputs: Inputs = {
            **{f"engine {each.plan}": digest(asdict(each)) for each in engines},
            "reference": sha256_file(artifact / REFERENCE_FILE),
            "tokenizer": sha256_file(artifact / "tokenizer.json"),
            **flat("threshold", recipe.thresholds.model_dump(exclude_none=True)),
            **code_of_folder("enginewright.runtime"),
            **code_of("enginewright.builder.conformance"),
            **tools("numpy", "tokenizers", *_installed_runtimes()),
            **(tools("torch") if interpreted is not None else {}),
            "processor": processor_name(),
            "cores": available_cores(),
            "kernels": os.environ.get("ENGINEWRIGHT_CPU_KERNELS"),
        }
        with self.cache.entry("conformance", inputs, check) as folder:
            told: dict[str, Any] = json.loads((folder / "conformance.json").read_text("utf-8"))
            return told

    def _export_inputs(self) -> Inputs:
        return {
            "family": self.subject.family.architecture,
            **flat("config", self.subject.config.to_dict()),
            **code_of("enginewright.builder.export"),
            **tools("torch", "transformers", "onnx", "onnx-ir", "onnxscript"),
        }

    def _reference_inputs(self, artifact: Path) -> Inputs:
        source, limits = self.subject.source, self.subject.recipe.limits
        return {
            "source": source.digest,
            "tokenizer": sha256_file(artifact / "tokenizer.json"),
            "max_context": min(limits.max_context, _REFERENCE_CONTEXT),
            **_data(),
            **code_of("enginewright.builder.reference", *_source_modules(source)),
            **tools("torch", "transformers", "tokenizers", "numpy", "gguf"),
        }

    def _compile_inputs(self, request: CompileRequest) -> dict[str, Any]:
        asked = {
            name: getattr(request, name)
            for name in request.__dataclass_fields__
            if name not in _NOT_INPUTS
        }
        asked |= {"limits": asdict(request.limits), "tensorrt": asdict(request.tensorrt)}
        scales = {name: scale.tolist() for name, scale in request.kv_scales.items()}
        return {
            "source": self.subject.source.digest,
            "export": digest(self._export_inputs()),
            "kv_scales": digest(scales),
            "target": self.subject.recipe.target,
            **flat("recipe", asked),
            **code_of(type(self.subject.target).__module__, *_source_modules(self.subject.source)),
            **tools("numpy", "onnx", "onnx-ir", "gguf"),
        }


def _source_modules(source: Source) -> tuple[str, ...]:
    """Those that say how the source's weights are read."""
    return (type(source).__module__, "enginewright.builder.weights")


def _data() -> dict[str, str]:
    """The prompts and the text that the reference is about."""
    folder = Path(__file__).parent / "data"
    return {f"data {path.name}": sha256_file(path) for path in sorted(folder.glob("*.txt"))}


def _installed_runtimes() -> Iterator[str]:
    for name in _ONNX_RUNTIMES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        yield name
