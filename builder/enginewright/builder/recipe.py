"""The recipe: one YAML file that says what to build, for what, how exact, and how large.

    name: smollm2-135m-instruct-cpu-int8
    source: {path: ../checkpoints/smollm2}      # or gguf, or package, or hub: see SourceSpec
    target: cpu
    precision: int8
    limits: {max_context: 8192, max_batch: 32}
    conformance:                                # by precision, so that --set precision=... works
      int8: {min_top1_agreement: 0.95, max_mean_kl: 0.02}

The targets tensorrt_rtx and tensorrt know more fields: attention, capabilities, kv_cache, logits,
top_logits, tensorrt; cpu knows kv_cache. ``variants`` instead of target and precision asks for one
artifact with several engines; ``matrix`` for several artifacts (matrix.py).

Everything is checked when it is read; an error names the field's dotted path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from enginewright.builder.recipe_errors import describe
from enginewright.builder.recipe_yaml import apply_override, parse_yaml
from enginewright.builder.targets.tensorrt import capabilities
from enginewright.runtime.errors import RecipeError

_TENSORRT = ("fp16", "bf16", "int8", "int4", "fp8", "nvfp4")
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "bf16", "int4"),
    "tensorrt_rtx": _TENSORRT,
    "tensorrt": _TENSORRT,
}
"""The precisions that each target builds."""

ONLY: Mapping[str, tuple[str, ...]] = {
    "attention": ("tensorrt_rtx", "tensorrt"),
    "capabilities": ("tensorrt_rtx",),
    "kv_cache": ("cpu", "tensorrt_rtx", "tensorrt"),
    "logits": ("tensorrt_rtx", "tensorrt"),
    "top_logits": ("tensorrt_rtx", "tensorrt"),
    "tensorrt": ("tensorrt",),
}
"""The targets that know a field."""
_OF_VARIANTS = frozenset({"target", "precision", *ONLY})

Kind = Literal["path", "gguf", "package", "hub"]
_KINDS: tuple[Kind, ...] = ("path", "gguf", "package", "hub")
_COMPANIONS: Mapping[str, str] = {
    "file": "package",
    "version": "package",
    "sha256": "package",
    "revision": "hub",
}


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


def _matching(pattern: str, wanted: str) -> AfterValidator:
    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"it must be {wanted}")
        return value

    return AfterValidator(check)


_Name = Annotated[
    str,
    _matching(
        "[A-Za-z0-9][A-Za-z0-9._-]{0,127}",
        "1 to 128 letters, digits, dots, hyphens and underscores, the first a letter or digit",
    ),
]
_Repository = Annotated[str, _matching(r"[\w.-]+(/[\w.-]+)?", "a repository, as owner/name")]
_Sha256 = Annotated[str, _matching("[0-9a-f]{64}", "64 hexadecimal digits, in lower case")]
_Commit = Annotated[
    str,
    _matching(
        "[0-9a-f]{40}",
        "a commit's 40 hexadecimal digits, in lower case; branches and tags move, so they do not "
        "pin",
    ),
]


def _capability(value: Any) -> Any:
    """YAML reads 8.6 as a number; both forms are meant alike."""
    text = f"{value:.1f}" if isinstance(value, int | float) else value
    if text not in capabilities.RTX:
        raise ValueError(
            f"TensorRT-RTX builds for {', '.join(capabilities.RTX)} (target tensorrt builds for "
            f"the GPU that is there, such as an H100)"
        )
    return text


_Capability = Annotated[str, BeforeValidator(_capability)]
_Fraction = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0, le=1)]
_Bound = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SourceSpec(_Model):
    """Where the weights come from: exactly one of path, gguf, package and hub."""

    path: Path | None = None
    """A Hugging Face checkpoint folder; relative to the recipe's file."""
    gguf: Path | None = None
    """A GGUF file; relative to the recipe's file."""
    package: str | None = None
    """An installed Python distribution that carries a GGUF file, by its name on the registry."""
    file: str | None = None
    """With package: the GGUF file, relative to where packages are installed."""
    version: str | None = None
    """With package, optional: the version that the pip command in an error asks for."""
    sha256: _Sha256 | None = None
    """With package: the SHA-256 of the file, 64 hexadecimal digits."""
    hub: _Repository | None = None
    """A repository of the Hugging Face hub, as owner/name."""
    revision: _Commit | None = None
    """With hub: the commit, 40 hexadecimal digits."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"exactly one of {', '.join(_KINDS)} is wanted, {found} given")
        for name, owner in _COMPANIONS.items():
            present = getattr(self, name) is not None
            if present and owner != given[0]:
                raise ValueError(f"{name} goes with {owner}, not with {given[0]}")
            if not present and owner == given[0] and name != "version":
                raise ValueError(f"{owner} needs {name} beside it")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the four it is."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def reference(self) -> str:
        """A name without this machine's folders, for the manifest."""
        if self.kind == "package":
            return f"{self.package}/{self.file}"
        location = self.path or self.gguf
        return str(self.hub) if location is None else location.resolve().name

    @classmethod
    def at(cls, location: Path) -> Self:
        """The source at a path of the file system: a file is read as GGUF, else a checkpoint."""
        return cls(gguf=location) if location.is_file() else cls(path=location)


class Limits(_Model):
    """How much an engine must be able to hold."""

    max_context: Annotated[int, BeforeValidator(_refuse_bool), Field(ge=2, le=1 << 24)]
    """Tokens of one row, prompt and output together; at most the model's positions."""
    max_batch: Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1, le=4096)] = 32
    """Rows that may run together."""


class KVCacheSpec(_Model):
    """The paged cache: of the CPU's native plan, or of the attention plugin."""

    dtype: Literal["auto", "float32", "float16", "int8", "fp8"] = "auto"
    """How keys and values are stored: float32, float16 or int8 on the CPU, where auto is float32
    for fp32 and else float16; int8 or fp8 with the plugin, where auto is as they are calculated."""
    block_size: Literal[16, 32, 64, 128] = 32
    """Tokens of a block; on the CPU 32 or more."""

    def refusal(self, target: str) -> str | None:
        """Why the target has no such cache; None: it has."""
        legal = ("float32", "float16", "int8") if target == "cpu" else ("int8", "fp8")
        if self.dtype not in ("auto", *legal):
            return f"kv_cache.dtype: target {target} stores auto, {', '.join(legal)}"
        if target == "cpu" and self.block_size < 32:
            return "kv_cache.block_size: target cpu has blocks of 32, 64 or 128"
        return None


class TensorRTSpec(_Model):
    """What only full TensorRT has."""

    version_compatible: bool = False
    """Whether later versions of TensorRT, of the same major version, run the engine as well."""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """Which other GPUs run the engine, at some cost in speed."""


class Thresholds(_Model):
    """What the built engine must reach against the Hugging Face reference, or the build fails."""

    min_greedy_agreement: _Fraction = 0.0
    """Greedy tokens equal to the reference's, counted up to each prompt's first difference."""
    min_top1_agreement: _Fraction = 0.0
    """Positions whose likeliest next token is the reference's."""
    min_topk_agreement: _Fraction = 0.0
    """Mean share of the reference's k likeliest tokens that are among the engine's k likeliest."""
    max_mean_kl: _Bound | None = None
    """Mean KL divergence, in nats, of next-token distributions from the reference's."""
    max_kl: _Bound | None = None
    """The largest KL divergence at any single position, in nats."""
    max_perplexity_increase: _Bound | None = None
    """Relative change of the perplexity on the bundled text, up or down: 0.01 is one percent."""


DEFAULT_THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(
        min_greedy_agreement=1.0,
        min_top1_agreement=0.999,
        min_topk_agreement=0.99,
        max_mean_kl=1e-4,
        max_kl=0.01,
        max_perplexity_increase=0.001,
    ),
    "int8": Thresholds(min_top1_agreement=0.95, max_mean_kl=0.02, max_perplexity_increase=0.01),
    "int4": Thresholds(min_top1_agreement=0.95, max_mean_kl=0.02, max_perplexity_increase=0.01),
    "fp16": Thresholds(min_top1_agreement=0.98, max_mean_kl=3e-4, max_perplexity_increase=0.005),
    "bf16": Thresholds(min_top1_agreement=0.96, max_mean_kl=0.01, max_perplexity_increase=0.02),
    "fp8": Thresholds(min_top1_agreement=0.95, max_mean_kl=0.02, max_perplexity_increase=0.02),
    "nvfp4": Thresholds(min_top1_agreement=0.85, max_mean_kl=0.1, max_perplexity_increase=0.1),
}
"""What holds for a precision of which the recipe says nothing.

Small models miss some of them (docs/conformance.md has one of 135M parameters in each precision);
a recipe that takes that into account states its own.
"""


class Variant(_Model):
    """One engine of a set; a field that is not given is as the recipe says beside ``variants``."""

    name: _Name | None = None
    """In the names of its plans and files; by default target and precision, as in cpu-int4."""
    target: str
    """A key of PRECISIONS."""
    precision: str
    """One that the target builds."""
    attention: Literal["native", "plugin"] | None = None
    """As in the recipe, and so are those below."""
    capabilities: tuple[_Capability, ...] | None = None
    """As in the recipe."""
    kv_cache: KVCacheSpec | None = None
    """As in the recipe."""
    logits: Literal["host", "device"] | None = None
    """As in the recipe."""
    top_logits: int | None = None
    """As in the recipe."""
    tensorrt: TensorRTSpec | None = None
    """As in the recipe."""

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or f"{self.target}-{self.precision}"


class Recipe(_Model):
    """What to build."""

    name: _Name
    """The artifact's name, and the name of its folder."""
    source: SourceSpec
    target: str
    """A key of PRECISIONS."""
    precision: str
    """How weights are stored; one that the target builds."""
    limits: Limits
    conformance: Mapping[str, Thresholds] = Field(default_factory=dict)
    """Thresholds by precision; a field not given comes from DEFAULT_THRESHOLDS."""
    attention: Literal["native", "plugin"] | None = None
    """Attention by TensorRT's own layers (the default), or by this project's plugin."""
    capabilities: tuple[_Capability, ...] | None = None
    """The compute capabilities that a TensorRT-RTX engine is for, such as ["8.6", "12.0"].

    By default 8.0, 8.6, 8.9, 12.0 and later; with attention: plugin those and 12.1, none later.
    """
    kv_cache: KVCacheSpec | None = None
    """With target: cpu, or attention: plugin."""
    logits: Literal["host", "device"] | None = None
    """Where logits stay; of those on the device the host gets the highest, the others on demand."""
    top_logits: Annotated[int, BeforeValidator(_refuse_bool), Field(ge=2, le=3840)] | None = None
    """With logits: device, how many of each position come to the host; by default 64."""
    tensorrt: TensorRTSpec | None = None
    """With target: tensorrt."""
    variants: tuple[Variant, ...] | None = None
    """Engines of several targets in one artifact, the preferred one first; instead of target and
    precision. They share source, limits and tokenizer."""

    @model_validator(mode="before")
    @classmethod
    def _of_first_variant(cls, data: Any) -> Any:
        """The fields of a set are those of its first variant: they are what is checked below."""
        if not isinstance(data, Mapping) or not data.get("variants"):
            return data
        variants = data["variants"]
        if not isinstance(variants, list | tuple) or not isinstance(variants[0], Mapping):
            raise ValueError("variants: a list is wanted, of mappings with target and precision")
        first = {name: value for name, value in variants[0].items() if name in _OF_VARIANTS}
        beside = [name for name in _OF_VARIANTS & data.keys() if data[name] != first.get(name)]
        if beside:
            raise ValueError(
                f"{', '.join(sorted(beside))}: with variants, each of them says this itself"
            )
        return {**data, **first}

    @field_validator("target")
    @classmethod
    def _known_target(cls, target: str) -> str:
        if target not in PRECISIONS:
            raise ValueError(f"it must be {' or '.join(PRECISIONS)}")
        return target

    @field_validator("precision")
    @classmethod
    def _built_by_target(cls, precision: str, info: ValidationInfo) -> str:
        target = info.data.get("target")
        if target is not None and precision not in PRECISIONS[target]:
            raise ValueError(f"target {target} builds {', '.join(PRECISIONS[target])}")
        return precision

    @field_validator("conformance")
    @classmethod
    def _known_precisions(cls, given: Mapping[str, Thresholds]) -> Mapping[str, Thresholds]:
        for precision in given:
            if precision not in DEFAULT_THRESHOLDS:
                raise ValueError(f"{precision} is no precision: {', '.join(DEFAULT_THRESHOLDS)}")
        return given

    @field_validator(*ONLY)
    @classmethod
    def _known_by_target(cls, value: Any, info: ValidationInfo) -> Any:
        target, name = info.data.get("target"), str(info.field_name)
        if target is not None and value is not None and target not in ONLY[name]:
            raise ValueError(f"it is for target {' or '.join(ONLY[name])}, not for {target}")
        return value

    @field_validator("capabilities")
    @classmethod
    def _in_order(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if given == ():
            raise ValueError("name one at least, or leave the field out")
        return given and tuple(name for name in capabilities.RTX if name in given)

    @model_validator(mode="after")
    def _buildable_set(self) -> Self:
        self.each_variant()
        return self

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.kv_cache is not None:
            if self.target != "cpu" and self.attention != "plugin":
                raise ValueError(
                    "kv_cache goes with attention: plugin; native layers have one cache"
                )
            if refusal := self.kv_cache.refusal(self.target):
                raise ValueError(refusal)
        if self.top_logits is not None and self.logits != "device":
            raise ValueError("top_logits goes with logits: device; the host gets them all")
        compatible = self.tensorrt and self.tensorrt.hardware_compatibility != "none"
        if compatible and self.attention == "plugin":
            raise ValueError(
                "tensorrt.hardware_compatibility goes with attention: native; the plugin's kernels "
                "are compiled for the GPU of this machine alone"
            )
        if self.target == "tensorrt_rtx":
            wanted = capabilities.chosen(self.attention or "native", self.capabilities)
            reason = capabilities.refusal(self.precision, wanted)
            if reason is not None:
                raise ValueError(reason)
        return self

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of this recipe's precision: the defaults, changed by what is given."""
        given = self.conformance.get(self.precision, Thresholds())
        changes = given.model_dump(exclude_unset=True)
        return DEFAULT_THRESHOLDS[self.precision].model_copy(update=changes)

    def each_variant(self) -> dict[str, Recipe]:
        """The recipes of the engines of a set, by their names; what one says wrong is refused."""
        shared = self.model_dump(exclude_unset=True, exclude={"variants", *_OF_VARIANTS})
        found = {}
        for variant in self.variants or ():
            if variant.called in found:
                raise RecipeError(
                    f"recipe {self.name}: variants: two are called {variant.called}; give one of "
                    f"them a name"
                )
            own = variant.model_dump(exclude_unset=True, exclude={"name"})
            data = {**shared, **own, "name": f"{self.name}.{variant.called}"}
            found[variant.called] = make_recipe(data, f"recipe {self.name}, {variant.called}")
        return found

    def with_source(self, source: SourceSpec) -> Self:
        """The same recipe over another source."""
        return self.model_copy(update={"source": source})

    def check_positions(self, positions: int | None) -> None:
        """Raise RecipeError if max_context exceeds the positions that the model has."""
        wanted = self.limits.max_context
        if positions is not None and wanted > positions:
            raise RecipeError(
                f"recipe {self.name}: limits.max_context: {wanted} is more than the {positions} "
                f"positions of the model; give at most {positions}"
            )

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data for the manifest, without this machine's folders."""
        data = self.model_dump(mode="json", exclude_none=True)
        built = self.each_variant().values() if self.variants else (self,)
        data["conformance"] = {
            each.precision: each.thresholds.model_dump(mode="json", exclude_none=True)
            for each in built
        }
        if self.source.kind in ("path", "gguf"):
            data["source"] = {self.source.kind: self.source.reference}
        return data


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; ``overrides`` are ``dotted.path=value`` from the command line.

    Paths in the file are relative to the file, paths in overrides to the current folder.
    """
    data, where = read_recipe(path, overrides)
    if "matrix" in data:
        raise RecipeError(f"{where}: a matrix is several recipes; here one is wanted")
    return make_recipe(data, where)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """A recipe's file as plain data, and its name for errors; see ``load_recipe``."""
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}: no recipe can be read here ({error})") from error
    data = parse_yaml(text, where)
    _anchor(data, path.resolve().parent)
    for override in overrides:
        apply_override(data, override)
    _anchor(data, Path.cwd())
    if overrides:
        where += f" with --set {' --set '.join(overrides)}"
    return data, where


def make_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as plain data; ``where`` names it in errors."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {describe(error, Recipe)}") from error


def _anchor(data: dict[str, Any], folder: Path) -> None:
    """Make relative paths of the source absolute."""
    source = data.get("source")
    if not isinstance(source, dict):
        return
    for key in ("path", "gguf"):
        if isinstance(source.get(key), str):
            source[key] = str(folder / Path(source[key]).expanduser())
