"""A build from a source alone: the recipe that is chosen, and that LLM then finds the artifact."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from click.testing import CliRunner

from enginewright.builder.source.hub import newest_commit
from enginewright.builder.source_recipe import source_recipe
from enginewright.cli.main import main
from enginewright.runtime import (
    LLM,
    ArtifactNotFoundError,
    RecipeError,
    SamplingParams,
    SourceError,
)

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "Tiny Chat_v1.5", {})


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache of one's own, and a hub at a loopback port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def test_a_folder_gives_name_precision_and_context(checkpoint: Path, monkeypatch) -> None:
    recipe = source_recipe(str(checkpoint))
    assert recipe.name == "tiny-chat_v1.5-cpu-int8"
    assert (recipe.target, recipe.precision) == ("cpu", "int8")
    assert recipe.source.path == checkpoint
    assert recipe.limits.max_context == 128
    assert recipe.limits.max_batch == 32
    monkeypatch.chdir(checkpoint.parent)
    assert source_recipe(checkpoint.name) == recipe


def test_settings_go_over_what_was_chosen(checkpoint: Path) -> None:
    changes = ["precision=fp32", "limits.max_batch=4", "conformance.fp32.max_kl=0.5"]
    recipe = source_recipe(str(checkpoint), changes)
    assert recipe.name == "tiny-chat_v1.5-cpu-fp32"
    assert (recipe.limits.max_context, recipe.limits.max_batch) == (128, 4)
    assert recipe.thresholds.max_kl == 0.5
    named = source_recipe(str(checkpoint), ["name=other", "limits={max_context: 64}"])
    assert (named.name, named.limits.max_context) == ("other", 64)


def test_more_positions_than_most_need_are_not_all_taken(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "long", {"max_position_embeddings": 20000})
    assert source_recipe(str(folder)).limits.max_context == 8192


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        ("./no/such/place", [], r"--source ./no/such/place: no such folder or file"),
        ("model.gguf", [], r"--source model.gguf: no such file$"),
        ("model.safetensors", [], r"--source model.safetensors: no such file$"),
        ("./model.gguf", [], r"--source ./model.gguf: no such folder or file"),
        ("a/b/c", [], "whose form is owner/name"),
        ("{}", ["precision=int3"], r"--source .* --set precision=int3: precision: 'int3'"),
        ("{}", ["limits=3"], "limits: 3 is not legal"),
        ("{}", [f"source.revision={COMMIT}"], "revision goes with hub"),
    ],
)
def test_what_cannot_be_built_is_named(
    checkpoint: Path, source: str, changes: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        source_recipe(source.format(checkpoint), changes)


@pytest.mark.parametrize("name", ["/", "manifest.json"])
def test_a_source_that_holds_no_model_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    source = tmp_path / name
    with pytest.raises(SourceError, match=rf"^{source}.*(GGUF|config\.json)"):
        source_recipe(str(source))


def test_a_repository_is_pinned_to_its_newest_commit(
    offline: Path, make_checkpoint: Callable[..., Path]
) -> None:
    repository = offline / "models--someone--tiny"
    make_checkpoint(repository / "snapshots" / COMMIT, {})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    recipe = source_recipe("someone/tiny")
    assert recipe.name == "tiny-cpu-int8"
    assert (recipe.source.hub, recipe.source.revision) == ("someone/tiny", COMMIT)
    pinned = source_recipe("someone/tiny", [f"source.revision={COMMIT}"])
    assert pinned == recipe


def test_a_hub_that_cannot_be_reached_and_was_never_seen(offline: Path) -> None:
    with pytest.raises(
        SourceError, match=r"someone/tiny: the hub cannot be reached.*as the source"
    ):
        newest_commit("someone/tiny")


def test_what_was_built_from_a_folder_is_found_by_it(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError) as caught:
        LLM(checkpoint, quantization="fp32")
    line = next(line for line in str(caught.value).splitlines() if "enginewright build" in line)
    options = line.split("--set", 1)[1].replace("--output artifacts", "").split()
    command = ["build", "--source", str(checkpoint), "--set", *options, "-o", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    artifact = tmp_path / "tiny-chat_v1.5-cpu-fp32"
    assert result.stdout == f"{artifact}\n"
    with LLM(checkpoint, quantization="fp32", threads=1) as llm:
        assert llm.manifest.name == artifact.name
        assert llm.generate([5, 6], SamplingParams(max_tokens=2))[0].finished


@pytest.mark.parametrize("arguments", [[], ["recipe.yaml", "--source", "x"]])
def test_either_a_recipe_or_a_source(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["build", *arguments])
    assert result.exit_code == 2
    assert "give a RECIPE or --source" in result.stderr
