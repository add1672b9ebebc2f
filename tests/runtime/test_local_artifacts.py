"""LLM given a model where an artifact belongs: what was built from it here, or the command."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, ArtifactNotFoundError, EnginewrightError, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.local_artifacts import (
    BuiltFrom,
    local_artifacts,
    remember_artifact,
)
from enginewright.runtime.artifact.manifest import SourceEntry
from enginewright.runtime.artifact.model_lookup import build_command, find_artifact

COMMIT, OTHER = "0123456789" * 4, "abcdefabcd" * 4

Built = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "tiny-chat"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "model.safetensors").write_bytes(bytes(100))
    (folder / "README.md").write_text("about", "utf-8")
    return folder


@pytest.fixture
def built(tiny_artifact: Path, tmp_path: Path, manifest_writer: Callable[..., Any]) -> Built:
    """An artifact that was built here from something, as the last step of a build notes it."""

    def build(name: str, location: Path, precision: str = "fp32", **source: Any) -> Path:
        folder = Path(shutil.copytree(tiny_artifact, tmp_path / "artifacts" / name))
        entry = replace(Artifact.open(folder).engine(), precision=precision)
        told = {"kind": "checkpoint", "reference": location.name, "digest": f"sha256:{name}"}
        whole = SourceEntry(**(told | source), architecture="TinyForCausalLM")
        manifest_writer(folder, entry, name=name, source=whole)
        remember_artifact(folder, BuiltFrom.of(location), whole.digest)
        return folder

    return build


def hub(revision: str = COMMIT) -> dict[str, str]:
    return {"kind": "hub", "reference": "someone/tiny-chat", "revision": revision}


def test_a_checkpoints_folder_leads_to_its_artifact(
    checkpoint: Path, built: Built, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built("tiny", checkpoint)
    for model in (checkpoint, str(checkpoint), f"{checkpoint}/"):
        assert find_artifact(model) == folder
    monkeypatch.chdir(checkpoint.parent)
    assert find_artifact("tiny-chat") == folder
    with LLM("tiny-chat", threads=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        found = llm.generate([1, 2, 3], params)[0].outputs[0].token_ids
    assert found == tiny_model.continue_greedily([1, 2, 3], 4)


def test_a_gguf_file_leads_to_its_artifact(tmp_path: Path, built: Built) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    folder = built("tiny", file, kind="gguf")
    assert find_artifact(file) == folder
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    assert find_artifact(link) == folder


def test_a_hubs_name_leads_to_its_artifact(checkpoint: Path, built: Built) -> None:
    older = built("one", checkpoint, **hub(COMMIT))
    newer = built("two", checkpoint, **hub(OTHER))
    assert find_artifact("someone/tiny-chat") == newer
    assert find_artifact("someone/tiny-chat", revision=COMMIT) == older
    with LLM("someone/tiny-chat", threads=1, revision=COMMIT) as llm:
        assert llm.manifest.name == "one"
    with pytest.raises(ArtifactNotFoundError, match="someone/other: no such folder"):
        find_artifact("someone/other")
    alone = built("three", checkpoint, **hub(COMMIT) | {"reference": "tiny"})
    assert find_artifact("tiny") == alone


def test_the_precision_may_be_chosen_and_else_the_newest_is_named(
    checkpoint: Path, built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    exact, rounded = built("a", checkpoint), built("b", checkpoint, "int8")
    assert find_artifact(checkpoint) == rounded
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"using {rounded} (int8); older: {exact}" in record.message
    assert find_artifact(checkpoint, precision="fp32") == exact
    said = r"no artifact was built from it on this machine in int4; there is .*--set precision=int4"
    with pytest.raises(ArtifactNotFoundError, match=f"(?s){said}"):
        find_artifact(checkpoint, precision="int4")


def test_an_artifact_is_itself_whatever_was_built(checkpoint: Path, built: Built) -> None:
    folder = built("tiny", checkpoint)
    assert find_artifact(folder) == folder
    with pytest.raises(EnginewrightError, match=rf"revision='{COMMIT}': this artifact was built"):
        LLM(folder, revision=COMMIT)


@pytest.mark.parametrize("change", ["content", "time", "added", "removed"])
def test_a_checkpoint_that_changed_is_not_served_stale(
    checkpoint: Path, built: Built, change: str
) -> None:
    folder = built("tiny", checkpoint, "int8")
    name = "model.safetensors"
    if change == "content":
        (checkpoint / name).write_bytes(bytes(101))
    elif change == "time":
        os.utime(checkpoint / name, ns=(1, 1))
    elif change == "added":
        name = "chat_template.jinja"
        (checkpoint / name).write_text("{{ messages }}", "utf-8")
    else:
        (checkpoint / name).unlink()
    with pytest.raises(ArtifactNotFoundError) as caught:
        find_artifact(checkpoint)
    assert f"{name} was changed since {folder} was built from it" in str(caught.value)
    assert build_command(str(checkpoint), "int8") in str(caught.value)
    assert find_artifact(folder) == folder
    again = built("again", checkpoint)
    assert find_artifact(checkpoint) == again


def test_what_no_build_reads_may_change(checkpoint: Path, built: Built) -> None:
    folder = built("tiny", checkpoint)
    (checkpoint / "README.md").write_text("more about it", "utf-8")
    assert find_artifact(checkpoint) == folder


def test_an_artifact_that_is_gone_or_replaced_is_passed_over(
    checkpoint: Path, built: Built, tiny_artifact: Path
) -> None:
    kept, gone, replaced = (built(name, checkpoint) for name in ("kept", "gone", "replaced"))
    shutil.rmtree(gone)
    shutil.rmtree(replaced)
    shutil.copytree(tiny_artifact, replaced)
    assert [each.path for each in local_artifacts()] == [kept]
    assert find_artifact(checkpoint) == kept


def test_records_that_are_damaged_are_passed_over(checkpoint: Path, built: Built) -> None:
    folder = built("tiny", checkpoint)
    cache = cache_folder()
    assert cache is not None
    for number, text in enumerate(["", "[]", "{}", '{"artifact": 3, "files": {"a": 1}}']):
        (cache / "artifacts" / f"{number}.json").write_text(text, "utf-8")
    assert find_artifact(checkpoint) == folder


def test_a_second_build_at_the_same_place_replaces_its_record(
    checkpoint: Path, tmp_path: Path, built: Built
) -> None:
    folder = built("tiny", checkpoint)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    remember_artifact(folder, BuiltFrom.of(other), "sha256:tiny")
    assert find_artifact(other) == folder
    with pytest.raises(ArtifactNotFoundError):
        find_artifact(checkpoint)
    cache = cache_folder()
    assert cache is not None
    (record,) = (cache / "artifacts").iterdir()
    assert set(json.loads(record.read_text())) == {
        "artifact",
        "built_at",
        "digest",
        "location",
        "files",
    }


def test_without_a_safe_cache_nothing_is_noted(
    checkpoint: Path, built: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "enginewright").mkdir()
    (tmp_path / "shared" / "enginewright").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    built("tiny", checkpoint)
    assert local_artifacts() == []
    assert not list((tmp_path / "shared" / "enginewright").iterdir())


@pytest.mark.parametrize(
    ("model", "problem", "source"),
    [
        ("facebook/opt-125m", "no such folder", "facebook/opt-125m"),
        ("{checkpoint}", "is a checkpoint, no artifact", "{checkpoint}"),
        ("{checkpoint}/model.gguf", "is a file, no artifact", "{checkpoint}/model.gguf"),
    ],
)
def test_without_an_artifact_the_command_that_builds_one_is_printed(
    checkpoint: Path, model: str, problem: str, source: str
) -> None:
    (checkpoint / "model.gguf").write_bytes(b"GGUF")
    model, source = model.format(checkpoint=checkpoint), source.format(checkpoint=checkpoint)
    with pytest.raises(ArtifactNotFoundError) as caught:
        LLM(model)
    assert f"{model}: {problem}, and no artifact was built from it" in str(caught.value)
    command = f"enginewright build --source {source} --set precision=int8 --output artifacts"
    assert f"\n    {command}\n" in str(caught.value)


def test_a_file_of_which_nothing_can_be_built_is_named(tiny_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("about")
    said = "is a file, and no GGUF file; an artifact's folder is expected"
    with pytest.raises(ArtifactNotFoundError, match=rf"notes.txt: {said}$"):
        LLM(tmp_path / "notes.txt")
    with pytest.raises(ArtifactNotFoundError, match=f"{said}; {tiny_artifact} is one, give that$"):
        LLM(tiny_artifact / "manifest.json")


def test_the_command_is_for_a_shell() -> None:
    command = build_command("a folder/x", "fp32", COMMIT)
    assert command == (
        f"enginewright build --source 'a folder/x' --set precision=fp32 "
        f"--set source.revision={COMMIT} --output artifacts"
    )


@pytest.mark.parametrize("model", ["nowhere", "./no/where", "/no/such/folder", "a/b/c"])
def test_what_cannot_be_a_models_name_is_a_missing_folder(model: str) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no such folder; an artifact's path"):
        LLM(model)


def test_a_folder_that_is_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"holds no manifest\.json"):
        LLM(tmp_path)
