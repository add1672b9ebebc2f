"""A signature holds for one manifest and one key; whatever is changed, it does not."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import (
    ArtifactError,
    IntegrityError,
    SettingsError,
    SignatureError,
)
from enginewright.runtime.trust.dsse import IN_TOTO, Envelope
from enginewright.runtime.trust.keys import key_id, private_key, public_key
from enginewright.runtime.trust.signing import SIGNATURES, check_signature, sign

MakeKey = Callable[[str], tuple[Path, Path]]


def signed(folder: Path, key: Path) -> Path:
    return sign(Artifact.open(folder), private_key(key))


def rewrite(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}))


def test_who_signed_is_told(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    before = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    path = signed(artifact, private)

    assert path.parent == artifact / SIGNATURES
    signer = check_signature(Artifact.open(artifact, "always"), [public])
    assert signer == key_id(public_key(public))
    assert {path: path.read_bytes() for path in before} == before


def test_the_statement_names_the_manifest_and_what_it_was_built_from(
    artifact: Path, make_key: MakeKey
) -> None:
    envelope = json.loads(signed(artifact, make_key("release")[0]).read_text("utf-8"))
    told = json.loads(base64.b64decode(envelope["payload"]))
    manifest = Artifact.open(artifact).manifest

    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert (told["_type"], told["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    digest = hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
    assert told["subject"] == [{"name": "manifest.json", "digest": {"sha256": digest}}]
    build = told["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"recipe": manifest.recipe}
    [source] = build["resolvedDependencies"]
    assert source["digest"] == {"enginewrightSource": manifest.source.digest[7:]}
    products = told["predicate"]["runDetails"]["byproducts"]
    assert {each["name"] for each in products} == manifest.files.keys()


def test_what_is_signed_is_what_the_dsse_specification_says(
    artifact: Path, make_key: MakeKey
) -> None:
    private, public = make_key("release")
    data = json.loads(signed(artifact, private).read_text("utf-8"))
    payload = base64.b64decode(data["payload"])
    kind = data["payloadType"]
    pae = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload

    [signature] = data["signatures"]
    public_key(public).verify(base64.b64decode(signature["sig"]), pae)


def test_another_key_is_not_trusted(artifact: Path, make_key: MakeKey) -> None:
    signed(artifact, make_key("theirs")[0])
    _, ours = make_key("ours")
    with pytest.raises(SignatureError, match="not signed by a trusted key"):
        check_signature(Artifact.open(artifact), [ours])


def test_one_of_several_keys_is_enough(artifact: Path, make_key: MakeKey) -> None:
    (first, _), (second, public) = make_key("first"), make_key("second")
    signed(artifact, first)
    signed(artifact, second)

    _, other = make_key("other")
    assert check_signature(Artifact.open(artifact), [other, public]) == key_id(public_key(public))
    assert len(list((artifact / SIGNATURES).iterdir())) == 2


def test_signing_again_replaces(artifact: Path, make_key: MakeKey) -> None:
    private, _ = make_key("release")
    assert signed(artifact, private) == signed(artifact, private)
    assert len(list((artifact / SIGNATURES).iterdir())) == 1


def test_an_artifact_without_signatures(artifact: Path, make_key: MakeKey) -> None:
    with pytest.raises(SignatureError, match="holds no signature"):
        check_signature(Artifact.open(artifact), [make_key("release")[1]])


def test_a_signature_of_another_artifact(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    signed(artifact, private)
    manifest = Artifact.open(artifact).manifest
    changed = dataclasses.replace(manifest, name="another")
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")

    with pytest.raises(SignatureError, match="as it is now"):
        check_signature(Artifact.open(artifact), [public])


def test_every_byte_of_the_payload_is_signed(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    path = signed(artifact, private)
    payload = base64.b64decode(json.loads(path.read_text("utf-8"))["payload"])
    told = json.loads(payload)
    told["predicate"]["buildDefinition"]["externalParameters"] = {"recipe": "forged"}
    rewrite(path, payload=base64.b64encode(json.dumps(told).encode()).decode())

    with pytest.raises(SignatureError):
        check_signature(Artifact.open(artifact), [public])


def test_the_payloads_type_is_signed(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    key = private_key(private)
    path = signed(artifact, private)
    payload = Envelope.parse(path.read_text("utf-8"), "").payload
    path.write_text(Envelope.sign(payload, "text/plain", key).to_json())
    with pytest.raises(SignatureError):
        check_signature(Artifact.open(artifact), [public])
    rewrite(path, payloadType=IN_TOTO)
    with pytest.raises(SignatureError):
        check_signature(Artifact.open(artifact), [public])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"payload": "!", "payloadType": "", "signatures": []}', "[" * 9999]
)
def test_damaged_envelopes_hide_no_other(artifact: Path, make_key: MakeKey, text: str) -> None:
    private, public = make_key("release")
    signed(artifact, private)
    (artifact / SIGNATURES / "0.dsse.json").write_text(text)

    assert check_signature(Artifact.open(artifact), [public])


def test_many_other_files_hide_no_signature(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    path = signed(artifact, private)
    for number in range(64):
        (artifact / SIGNATURES / f"0{number:02}.dsse.json").write_text("junk")
    assert check_signature(Artifact.open(artifact), [public])

    path.rename(path.with_name("z.dsse.json"))
    with pytest.raises(SignatureError, match="in the 64 files that were read, and 1 more were not"):
        check_signature(Artifact.open(artifact), [public])


@pytest.mark.parametrize("linked", ["evidence", SIGNATURES])
def test_nothing_is_signed_outside_of_the_artifact(
    artifact: Path, make_key: MakeKey, tmp_path: Path, linked: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(artifact / linked, ignore_errors=True)
    (artifact / linked).parent.mkdir(exist_ok=True)
    (artifact / linked).symlink_to(elsewhere)
    with pytest.raises(ArtifactError, match=f"{linked}: is a symbolic link"):
        signed(artifact, make_key("release")[0])
    assert list(elsewhere.iterdir()) == []


def test_a_manifest_that_is_exchanged_after_it_was_read(artifact: Path, make_key: MakeKey) -> None:
    private, public = make_key("release")
    opened = Artifact.open(artifact)
    changed = dataclasses.replace(opened.manifest, name="another")
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    signed(artifact, private)

    with pytest.raises(IntegrityError, match="exchanged"):
        check_signature(opened, [public])


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    for read in (private_key, public_key):
        with pytest.raises(SettingsError, match=r"key: is not a (private|public) key"):
            read(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        public_key(tmp_path / "absent")


def test_a_key_of_another_algorithm(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    path = tmp_path / "key.pub"
    public = generate_private_key(SECP256R1()).public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(SettingsError, match="must be Ed25519"):
        public_key(path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_keys_of_openssl(artifact: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    for command in (
        ["genpkey", "-algorithm", "ed25519", "-out", str(private)],
        ["pkey", "-in", str(private), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    signed(artifact, private)

    assert check_signature(Artifact.open(artifact), [public])
