"""A policy: what it forbids is neither loaded nor run, whatever else is asked for."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, Policy
from enginewright.runtime.artifact import artifact as artifact_module
from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.manifest import FileEntry
from enginewright.runtime.artifact.native_code import remember, this_platform
from enginewright.runtime.errors import (
    IntegrityError,
    MissingDependencyError,
    PolicyError,
    SettingsError,
    SignatureError,
)
from enginewright.runtime.trust.keys import private_key, public_key
from enginewright.runtime.trust.signing import sign
from enginewright.runtime.verification import verify_artifact

MakeKey = Callable[[str], tuple[Path, Path]]
LIBRARY = "engine/operators.so"


@pytest.fixture
def native(artifact: Path) -> Path:
    """The artifact with a native plan before the plain one, whose library cannot be loaded."""
    (artifact / LIBRARY).write_bytes(b"no library")
    manifest = Artifact.open(artifact).manifest
    [plain] = manifest.engines
    entry = FileEntry(10, sha256_file(artifact / LIBRARY))
    plan = dataclasses.replace(
        plain,
        plan="native",
        files=(*plain.files, LIBRARY),
        library=LIBRARY,
        platform=this_platform(),
    )
    files = {**manifest.files, LIBRARY: entry}
    changed = dataclasses.replace(manifest, engines=(plan, plain), files=files)
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    return artifact


def test_a_signed_artifact_is_loaded(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    policy = {"signed_by": [str(public)]}
    with pytest.raises(SignatureError):
        LLM(artifact, policy=policy)
    sign(Artifact.open(artifact), private_key(private))
    with LLM(artifact, policy=policy) as llm:
        assert llm.generate("It was")[0].outputs[0].token_ids


def test_signed_weights_that_were_overwritten_in_place_are_refused(
    artifact: Path, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_module, "SMALL_FILE", 1000)
    private, public = make_key("release")
    sign(Artifact.open(artifact), private_key(private))
    weights = artifact / "engine" / "weights.bin"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(b"tampered")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(IntegrityError, match=r"weights\.bin"):
        LLM(artifact, policy={"signed_by": [public]})


def test_weights_that_were_altered_are_found_under_a_policy(
    artifact: Path, make_key: MakeKey
) -> None:
    private, public = make_key("release")
    sign(Artifact.open(artifact), private_key(private))
    with pytest.raises(PolicyError, match="verify='never'"):
        LLM(artifact, policy={"signed_by": [public]}, verify="never")


@pytest.mark.parametrize("pattern", ["checkpoint:*", "sha256:*", "*"])
def test_a_listed_source(artifact: Path, pattern: str) -> None:
    with LLM(artifact, policy={"sources": ["hub:nobody/*", pattern]}) as llm:
        assert llm.manifest.name == "tiny"


@pytest.mark.parametrize("sources", [[], ["hub:*"], ["CHECKPOINT:*"]])
def test_another_source(artifact: Path, sources: list[str]) -> None:
    with pytest.raises(PolicyError, match="which the policy does not list"):
        LLM(artifact, policy=Policy(sources=tuple(sources)))


def test_a_policy_is_stricter_than_any_argument(native: Path) -> None:
    remember(Artifact.open(native).manifest.files[LIBRARY].sha256)
    with LLM(native, policy={"native_code": "never"}) as llm:
        assert llm.plan == "test", "though this machine made the library"
    for rule in ("never", "own"):
        with pytest.raises(PolicyError, match=f"native_code: {rule}"):
            LLM(native, policy={"native_code": rule}, allow_native_code=True)


def test_native_code_of_others(native: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LLM(native, policy={"native_code": "own"}) as llm:
        assert llm.plan == "test"
    assert "not compiled on this machine" in caplog.text
    caplog.clear()
    with LLM(native, policy={"native_code": "any"}) as llm:
        assert llm.plan == "test"
    assert "not compiled on this machine" not in caplog.text, "it was tried, and is no library"
    with LLM(native, policy={"native_code": "any"}, allow_native_code=False) as llm:
        assert llm.plan == "test"
    assert "native code is not allowed" in caplog.text


def test_a_draft_is_under_the_policy_too(
    artifact: Path, tiny_artifact: Path, make_key: MakeKey
) -> None:
    private, public = make_key("release")
    sign(Artifact.open(artifact), private_key(private))
    policy = {"signed_by": [public]}
    draft = {"model": str(tiny_artifact), "num_speculative_tokens": 2}
    with pytest.raises(SignatureError, match="speculative_config's model cannot be loaded"):
        LLM(artifact, policy=policy, speculative_config=draft)


def test_verify_is_under_the_policy_too(artifact: Path) -> None:
    with pytest.raises(PolicyError):
        verify_artifact(artifact, policy=Policy(sources=("hub:*",)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "must map some of signed_by, sources, native_code"),
        ([], "must map"),
        ({"signed": []}, "did you mean signed_by?"),
        ({"signed_by": []}, "names no key"),
        ({"signed_by": "key.pub"}, "must be a list"),
        ({"signed_by": None}, "must be a list"),
        ({"sources": [1]}, "sources: 1 is not legal; each of the list must be a text"),
        ({"signed_by": ["a", 1]}, "signed_by: 1 is not legal; each of the list must be a text"),
        ({"native_code": "yes"}, "legal: never, own, any"),
        ({"native_code": None}, "legal: never, own, any"),
        ({"native_code": True}, "legal: never, own, any"),
    ],
)
def test_a_wrong_policy_is_named(data: Any, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Policy.of(data, "policy.yaml")
    assert said in str(raised.value)
    assert str(raised.value).startswith("policy.yaml: ")


def test_keys_are_found_beside_the_policys_file(tmp_path: Path, make_key: MakeKey) -> None:
    _, public = make_key("release")
    policy = Policy.of({"signed_by": ["release.pub"]}, "policy.yaml", tmp_path)
    assert policy.signed_by == (public,)


def test_without_the_package_a_signature_cannot_be_checked(
    artifact: Path, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, public = make_key("release")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match=r"enginewright\[sign\]"):
        public_key(public)
    with pytest.raises(MissingDependencyError):
        LLM(artifact, policy={"signed_by": [public]})


def test_a_policy_brings_nothing_heavy() -> None:
    code = "import sys; from enginewright.runtime import LLM, Policy; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"cryptography", "yaml", "requests"} & set(done.stdout.split())
