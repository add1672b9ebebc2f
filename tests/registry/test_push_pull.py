"""``push`` and ``pull``: what they print, and what a pull refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_name_of_another_form_is_refused(tiny_artifact: Path, tmp_path: Path, verb: str) -> None:
    place = [str(tiny_artifact)] if verb == "push" else []
    result = CliRunner().invoke(main, [verb, *place, "host/model"])
    assert result.exit_code == 1
    assert "the form is oci://" in result.stderr


def test_what_pull_prints_is_a_path(tiny_artifact: Path, tmp_path: Path, registry: str) -> None:
    name = f"oci://{registry}/tiny:1"
    pushed = CliRunner().invoke(main, ["push", str(tiny_artifact), name])
    assert pushed.exit_code == 0, pushed.output
    assert pushed.stdout.startswith(f"{name}@sha256:")
    pulled = CliRunner().invoke(main, ["pull", pushed.stdout.strip(), "-o", str(tmp_path / "b")])
    assert pulled.exit_code == 0, pulled.output
    assert Path(pulled.stdout.strip()) == tmp_path / "b" / "tiny"
    verified = CliRunner().invoke(main, ["verify", pulled.stdout.strip(), "--threads", "1"])
    assert verified.exit_code == 0, verified.output


def test_an_unsigned_artifact_is_not_pulled(
    tiny_artifact: Path, tmp_path: Path, registry: str
) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra [sign]")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = Ed25519PrivateKey.generate().public_key()
    key = tmp_path / "key.pub"
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    name = f"oci://{registry}/tiny:1"
    CliRunner().invoke(main, ["push", str(tiny_artifact), name])
    result = CliRunner().invoke(
        main, ["pull", name, "-o", str(tmp_path / "b"), "--require-signature", str(key)]
    )
    assert result.exit_code == 1
    assert "is not signed by a trusted key" in result.stderr
    assert list((tmp_path / "b").iterdir()) == [], "no retry would do"


def test_an_artifact_whose_file_is_missing_is_there(
    tiny_artifact: Path, tmp_path: Path, registry: str
) -> None:
    name = f"oci://{registry}/tiny:1"
    CliRunner().invoke(main, ["push", str(tiny_artifact), name])
    digest = Artifact.open(tiny_artifact).manifest.files["tokenizer.json"].sha256
    [root] = tmp_path.glob("data-*")
    [blob] = root.rglob(f"blobs/sha256/*/{digest}/data")
    blob.unlink()
    arguments = ["pull", name, "-o", str(tmp_path / "b"), "--if-there"]
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 1
    assert "blobs/sha256" in result.stderr
    assert "is not there" not in result.stderr


def test_a_name_that_is_not_there(tmp_path: Path, registry: str) -> None:
    arguments = ["pull", f"oci://{registry}/never:1", "-o", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    result = CliRunner().invoke(main, [*arguments, "--if-there"])
    assert (result.exit_code, result.stdout) == (0, "")
    dead = CliRunner().invoke(main, ["pull", "oci://127.0.0.1:9/a", "--if-there"])
    assert dead.exit_code == 1, "a registry that does not answer may have it"
    assert "GET manifests/latest failed 6 times (Connection refused); try again\n" in dead.stderr
