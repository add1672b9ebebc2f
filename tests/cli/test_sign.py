"""``sign``, ``verify --require-signature`` and ``--policy``."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from enginewright.cli.main import main

pytest.importorskip("cryptography", reason="signatures need the extra [sign]")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half lies beside it, with the suffix .pub."""
    path = tmp_path / "key.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", path)
    openssl("pkey", "-in", path, "-pubout", "-out", path.with_suffix(".pub"))
    return path


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


def test_a_signed_artifact_is_verified(artifact: Path, key: Path) -> None:
    asked = ("verify", artifact, "--threads", 1, "--require-signature", key.with_suffix(".pub"))
    refused = run(*asked)
    assert refused.exit_code == 1
    assert "is not signed by a trusted key" in refused.stderr
    result = run("sign", artifact, "--key", key)
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()).is_file()

    verified = run(*asked, "--json")
    assert verified.exit_code == 0, verified.output
    assert json.loads(verified.stdout)["signed_by"].startswith(Path(result.stdout).name[:16])
    assert run(*asked).stdout.startswith("signed by ")


def test_an_altered_artifact_is_not_signed(artifact: Path, key: Path) -> None:
    (artifact / "chat_template.jinja").write_text("other")
    result = run("sign", artifact, "--key", key)

    assert result.exit_code == 1
    assert not (artifact / "evidence" / "signatures").exists()


def test_an_encrypted_key_needs_its_password(
    artifact: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked.pem"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    for password in (None, "wrong"):
        if password is not None:
            monkeypatch.setenv("ENGINEWRIGHT_KEY_PASSWORD", password)
        result = run("sign", artifact, "--key", locked)
        assert result.exit_code == 1, result.output
        assert str(locked) in result.stderr
    monkeypatch.setenv("ENGINEWRIGHT_KEY_PASSWORD", "secret")
    assert run("sign", artifact, "--key", locked).exit_code == 0


def test_run_and_verify_keep_to_a_policy(artifact: Path, key: Path) -> None:
    policy = key.with_name("policy.yaml")
    policy.write_text("signed_by: [key.pub]\nsources: ['checkpoint:*']\nnative_code: never\n")
    commands = (
        ("run", artifact, "It was", "--max-tokens", 2, "--policy", policy),
        ("verify", artifact, "--threads", 1, "--policy", policy),
    )
    for command in commands:
        refused = run(*command)
        assert refused.exit_code == 1, refused.output
        assert "is not signed" in refused.stderr
    run("sign", artifact, "--key", key)
    for command in commands:
        assert run(*command).exit_code == 0
    forbidden = run(*commands[0], "--allow-native-code")
    assert forbidden.exit_code == 1
    assert "native_code: never" in forbidden.stderr


def test_a_wrong_policy_is_refused_before_anything_is_loaded(artifact: Path, key: Path) -> None:
    policy = key.with_name("policy.yaml")
    policy.write_text("signed_by: [key.pub]\nnative_cod: never\n")
    result = run("run", artifact, "hello", "--policy", policy)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "native_cod: did you mean native_code?" in result.stderr
