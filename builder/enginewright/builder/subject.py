"""What a recipe is about, opened and checked: the source, its config and family, the target."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from enginewright.builder.families import Family, check_config, family_of
from enginewright.builder.families.heads import check_heads
from enginewright.builder.recipe import Recipe
from enginewright.builder.source import Source, open_source
from enginewright.builder.targets import Target, target_of


@dataclass(frozen=True)
class Subject:
    """A recipe whose source is open; headers and small files are read, weights are not."""

    recipe: Recipe
    source: Source
    config: PreTrainedConfig
    family: Family
    target: Target


def open_subject(recipe: Recipe) -> Subject:
    """Open the source and refuse by name what would fail late. Raises BuildError and below."""
    source = open_source(recipe.source)
    family = family_of(source.architecture)
    config = source.model_config()
    check_config(source.architecture, config)
    check_heads(recipe.target, config, recipe.attention or "native")
    source.check()
    recipe.check_positions(source.positions)
    return Subject(recipe, source, config, family, target_of(recipe.target))
