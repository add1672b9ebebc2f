"""Recipes: what is legal, and what an error says of what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.recipe import (
    DEFAULT_THRESHOLDS,
    PRECISIONS,
    Recipe,
    SourceSpec,
    load_recipe,
    make_recipe,
)
from enginewright.runtime.errors import RecipeError

SHIPPED = Path(__file__).parents[2] / "recipes"
SHA256 = "0123456789abcdef" * 4
COMMIT = "0123456789" * 4


def plain(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": "tiny",
        "source": {"path": "/models/tiny"},
        "target": "cpu",
        "precision": "int8",
        "limits": {"max_context": 128, "max_batch": 4},
    }
    return {key: value for key, value in (data | changes).items() if value is not None}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def message(**changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make_recipe(plain(**changes))
    return str(caught.value)


def test_the_recipes_of_the_repository_are_legal_and_cover_every_precision() -> None:
    recipes = {path: load_recipe(path) for path in SHIPPED.iterdir()}
    assert {recipe.precision for recipe in recipes.values()} >= set(PRECISIONS["cpu"])
    assert all(path.name == f"{recipe.name}.yaml" for path, recipe in recipes.items())


def test_thresholds_of_the_shipped_recipes() -> None:
    exact = load_recipe(SHIPPED / "smollm2-135m-instruct-cpu-fp32.yaml").thresholds
    assert (exact.min_greedy_agreement, exact.min_top1_agreement) == (1.0, 0.999)
    assert (exact.max_mean_kl, exact.max_perplexity_increase) == (1e-4, 0.001)
    for precision in ("int8", "int4"):
        near = load_recipe(SHIPPED / f"smollm2-135m-instruct-cpu-{precision}.yaml").thresholds
        assert near.min_top1_agreement == 0.95
        assert (near.max_mean_kl, near.max_perplexity_increase) == (0.02, 0.01)


def test_thresholds_given_in_part_keep_the_other_defaults() -> None:
    given = {"int8": {"min_top1_agreement": 0.5}, "fp32": {"max_kl": 1}}
    thresholds = make_recipe(plain(conformance=given)).thresholds
    assert thresholds.min_top1_agreement == 0.5
    assert thresholds.max_kl is None
    assert thresholds.max_mean_kl == DEFAULT_THRESHOLDS["int8"].max_mean_kl


def test_an_overridden_precision_takes_its_own_thresholds() -> None:
    recipe = load_recipe(SHIPPED / "smollm2-135m-instruct-cpu-fp32.yaml", ["precision=int8"])
    assert recipe.thresholds == DEFAULT_THRESHOLDS["int8"]


def test_overrides_reach_nested_fields() -> None:
    path = SHIPPED / "smollm2-135m-instruct-cpu-fp32.yaml"
    recipe = load_recipe(
        path, ("precision=int4", "limits.max_context=1024", "conformance.int4.max_mean_kl=1e-3")
    )
    assert (recipe.precision, recipe.limits.max_context) == ("int4", 1024)
    assert recipe.limits.max_batch == 32
    assert recipe.thresholds.max_mean_kl == 1e-3


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "int8"])
def test_the_cpu_stores_keys_and_values_in(dtype: str) -> None:
    made = make_recipe(plain(kv_cache={"dtype": dtype, "block_size": 64})).kv_cache
    assert made is not None
    assert (made.dtype, made.block_size) == (dtype, 64)


def test_the_cpu_has_no_other_cache() -> None:
    said = message(kv_cache={"dtype": "fp8"})
    assert "target cpu stores auto, float32, float16, int8" in said
    assert "blocks of 32, 64 or 128" in message(kv_cache={"block_size": 16})


@pytest.mark.parametrize("override", ["precision", "=int8", "limits..max_context=1", "name.x=1"])
def test_an_override_of_another_form_is_an_error(override: str) -> None:
    path = SHIPPED / "smollm2-135m-instruct-cpu-fp32.yaml"
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(path, [override])


def test_an_error_of_an_override_names_the_override() -> None:
    path = SHIPPED / "smollm2-135m-instruct-cpu-fp32.yaml"
    with pytest.raises(RecipeError, match=r"--set precision=int9: precision: 'int9' is not legal"):
        load_recipe(path, ["precision=int9"])


@pytest.mark.parametrize(
    ("changes", "path", "nearest"),
    [
        ({"presicion": "int8"}, "presicion: unknown key", "did you mean precision?"),
        ({"limits": {"max_context": 1, "max_bacth": 1}}, "limits.max_bacth", "max_batch?"),
        ({"conformance": {"int8": {"mean_kl": 1}}}, "conformance.int8.mean_kl", "max_mean_kl?"),
        ({"source": {"path": "a", "revison": "b"}}, "source.revison", "revision?"),
    ],
)
def test_a_misspelt_key_names_its_path_and_the_nearest_legal_one(
    changes: dict[str, Any], path: str, nearest: str
) -> None:
    said = message(**changes)
    assert path in said
    assert nearest in said


def test_an_unknown_key_like_no_other_lists_the_legal_ones() -> None:
    said = message(limits={"max_context": 1, "zzz": 1})
    assert "limits.zzz: unknown key; legal: max_context, max_batch" in said


def test_all_problems_are_told_at_once() -> None:
    said = message(precision="fp8", limits={"max_context": 0})
    assert "precision: 'fp8' is not legal: target cpu builds fp32, int8, int4" in said
    assert "limits.max_context: 0 is not legal" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": 5}, "target: 5 is not legal: it must be text"),
        ({"limits": 5}, "limits: 5 is not legal: it must be a mapping with the keys max_context"),
        ({"source": "a"}, "source: 'a' is not legal: it must be a mapping with the keys path, "),
        ({"source": {"path": 5}}, "source.path: 5 is not legal: it must be a path"),
        ({"conformance": 3}, "conformance: 3 is not legal: it must be a mapping"),
        ({"conformance": {"int8": []}}, "a mapping with the keys min_greedy_agreement, "),
        ({"conformance": {"int8": 3}}, "conformance.int8: 3 is not legal: it must be a mapping"),
        ({"conformance": {8: {}}}, "conformance.8: 8 is not legal: it must be text"),
        ({"limits": {"max_context": "many"}}, "'many' is not legal: it must be an integer"),
        ({"limits": {"max_context": 1.5}}, "1.5 is not legal: it must be an integer"),
        ({"limits": {"max_context": 1}}, "1 is not legal: it must be at least 2"),
        ({"limits": {"max_context": 1 << 30}}, "it must be at most 16777216"),
        ({"conformance": {"int8": {"max_kl": float("inf")}}}, "it must be a finite number"),
        ({"conformance": {"int8": {"max_kl": "much"}}}, "'much' is not legal: it must be a number"),
        ({"name": "a/b"}, "name: 'a/b' is not legal: it must be 1 to 128 letters, digits"),
        ({"source": {"hub": "a/b", "revision": "main"}}, "it must be a commit's 40 hexadecimal"),
        ({"source": {"hub": "a/b/c", "revision": COMMIT}}, "a repository, as owner/name"),
        ({"source": {"package": "a", "file": "b", "sha256": "1"}}, "64 hexadecimal digits"),
    ],
)
def test_a_wrong_value_is_told_in_words(changes: dict[str, Any], said: str) -> None:
    told = message(**changes)
    assert said in told
    assert not any(word in told for word in ("Input", "pattern", "dictionary", "instance", "class"))


@pytest.mark.parametrize("missing", ["name", "source", "target", "precision", "limits"])
def test_a_missing_key_is_named(missing: str) -> None:
    assert f"{missing}: missing" in message(**{missing: None})


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", 1 << 40, None])
def test_an_impossible_limit_is_an_error(value: Any) -> None:
    assert f"limits.max_context: {value!r} is not legal" in message(limits={"max_context": value})


@pytest.mark.parametrize("value", [-0.1, 1.1, True, "most"])
def test_an_impossible_threshold_is_an_error(value: Any) -> None:
    said = message(conformance={"int8": {"min_top1_agreement": value}})
    assert f"conformance.int8.min_top1_agreement: {value!r} is not legal" in said


def test_a_threshold_of_no_precision_is_an_error() -> None:
    assert "int7 is no precision: fp32, int8, int4" in message(conformance={"int7": {}})


def test_an_unknown_target_lists_the_legal_ones() -> None:
    assert "target: 'tpu' is not legal: it must be cpu" in message(target="tpu")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a"])
def test_a_name_is_one_folder(name: str) -> None:
    assert f"name: {name!r} is not legal" in message(name=name)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({}, "exactly one of path, gguf, package, hub is wanted, none of them given"),
        ({"path": "a", "gguf": "b"}, "path and gguf given"),
        ({"package": "a", "sha256": SHA256}, "package needs file beside it"),
        ({"package": "a", "file": "b.gguf"}, "package needs sha256 beside it"),
        ({"hub": "a/b"}, "hub needs revision beside it"),
        ({"path": "a", "revision": COMMIT}, "revision goes with hub, not with path"),
        ({"hub": "a/b", "revision": "main"}, "source.revision: 'main' is not legal"),
        ({"hub": "a/b/c", "revision": COMMIT}, "source.hub: 'a/b/c' is not legal"),
        ({"package": "a", "file": "b", "sha256": "12"}, "source.sha256: '12' is not legal"),
    ],
)
def test_a_source_is_of_one_kind_and_pinned(source: dict[str, str], problem: str) -> None:
    assert problem in message(source=source)


def test_relative_paths_are_relative_to_the_recipe_and_overrides_to_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "name: a\nsource: {path: models/x}\ntarget: cpu\nprecision: int8\n"
    path = write(tmp_path, text + "limits: {max_context: 8}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_recipe(path).source.path == tmp_path / "models/x"
    assert load_recipe(path, ["source.path=y"]).source.path == elsewhere / "y"


def test_the_manifest_s_copy_holds_no_folder_of_this_machine(tmp_path: Path) -> None:
    recipe = make_recipe(plain(source={"path": str(tmp_path / "model")}))
    data = recipe.as_dict()
    assert data["source"] == {"path": "model"}
    assert str(tmp_path) not in repr(data)
    assert data["conformance"].keys() == {"int8"}


def test_with_source_changes_the_source_alone(tmp_path: Path) -> None:
    recipe = make_recipe(plain())
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    other = recipe.with_source(SourceSpec.at(tmp_path / "a.gguf"))
    assert other.source.gguf == tmp_path / "a.gguf"
    assert other.source.kind == "gguf"
    assert SourceSpec.at(tmp_path).kind == "path"
    assert other.model_copy(update={"source": recipe.source}) == recipe


def test_a_recipe_cannot_be_changed() -> None:
    recipe = make_recipe(plain())
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]
    assert isinstance(recipe, Recipe)


def test_more_context_than_the_model_has_positions_is_an_error() -> None:
    recipe = make_recipe(plain())
    recipe.check_positions(128)
    recipe.check_positions(None)
    with pytest.raises(RecipeError, match=r"limits\.max_context: 128 is more than the 64"):
        recipe.check_positions(64)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "nothing found"),
        ("- a\n", "list found"),
        ("name: [\n", "not YAML"),
        ("name: a\nname: b\n", "'name' is given twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_what_is_no_mapping_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=problem) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="binary"):
        load_recipe(tmp_path / "binary.yaml")
