"""The recipe: one YAML file that says what to build, for what, how exact, and how large.

    name: smollm2-135m-instruct-cpu-int8
    source: {path: ../checkpoints/smollm2}      # or gguf, or package, or hub: see SourceSpec
    target: cpu
    precision: int8
    limits: {max_context: 8192, max_batch: 32}
    conformance:                                # by precision, so that --set precision=... works
      int8: {min_top1_agreement: 0.95, max_mean_kl: 0.02}

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
from enginewright.runtime.errors import RecipeError

PRECISIONS: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32", "int8", "int4")}
"""The precisions that each target builds."""

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
}
"""What holds for a precision of which the recipe says nothing."""


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

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of this recipe's precision: the defaults, changed by what is given."""
        given = self.conformance.get(self.precision, Thresholds())
        changes = given.model_dump(exclude_unset=True)
        return DEFAULT_THRESHOLDS[self.precision].model_copy(update=changes)

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
        data["conformance"] = {
            self.precision: self.thresholds.model_dump(mode="json", exclude_none=True)
        }
        if self.source.kind in ("path", "gguf"):
            data["source"] = {self.source.kind: self.source.reference}
        return data


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; ``overrides`` are ``dotted.path=value`` from the command line.

    Paths in the file are relative to the file, paths in overrides to the current folder.
    """
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
    return make_recipe(data, where)


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
