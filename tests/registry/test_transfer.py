"""Push and pull against a real registry: byte for byte, once, resumed, checked, atomic."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.manifest import FileEntry
from enginewright.runtime.errors import PolicyError, RegistryError
from enginewright.runtime.registry import client
from enginewright.runtime.registry.reference import Reference
from enginewright.runtime.registry.transfer import Moved, pull, push
from enginewright.runtime.trust.policy import Policy

WEIGHTS = "engine/weights.bin"
LARGE = 3 << 20
SECRET = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
"""The word "secret" as bcrypt hashes it."""


def told(line: str) -> None:
    """To nobody."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.001)


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """With weights of three mebibytes, and evidence."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "made" / "tiny")
    manifest = Artifact.open(folder).manifest
    (folder / WEIGHTS).write_bytes(os.urandom(LARGE))
    files = {**manifest.files, WEIGHTS: FileEntry(LARGE, sha256_file(folder / WEIGHTS))}
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, files=files).to_json())
    (folder / "evidence" / "attestations").mkdir(parents=True, exist_ok=True)
    (folder / "evidence" / "attestations" / "here.json").write_text("{}")
    (folder / "evidence" / "empty").write_text("")
    return folder


def sent(folder: Path, host: str, tag: str = "1", repository: str = "models/tiny") -> Moved:
    return push(folder, Reference.parse(f"oci://{host}/{repository}:{tag}"), tell=told)


def got(host: str, output: Path, tag: str = "1", **options: Any) -> Moved:
    return pull(Reference.parse(f"oci://{host}/models/tiny:{tag}"), output, tell=told, **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_pulled_is_what_was_pushed(artifact: Path, registry: str, tmp_path: Path) -> None:
    pushed = sent(artifact, registry)
    pulled = got(registry, tmp_path / "there")

    assert pulled.path == tmp_path / "there" / "tiny"
    assert contents(pulled.path) == contents(artifact)
    assert pulled.reference == pushed.reference
    assert names(tmp_path / "there") == ["tiny"]
    assert pulled.moved == pushed.moved == sum(map(len, contents(artifact).values()))


def test_a_digest_names_one_artifact_for_ever(
    artifact: Path, registry: str, tmp_path: Path
) -> None:
    first = sent(artifact, registry).reference
    before = contents(artifact)
    (artifact / "evidence" / "more").write_text("later")
    assert sent(artifact, registry).reference != first

    again = pull(first, tmp_path / "there", tell=told)
    assert contents(again.path) == before


def test_nothing_is_pushed_to_a_digest(artifact: Path, registry: str, tmp_path: Path) -> None:
    first = sent(artifact, registry, "latest").reference
    (artifact / "evidence" / "more").write_text("later")
    with pytest.raises(RegistryError, match="leave @sha256"):
        push(artifact, first, tell=told)
    assert got(registry, tmp_path / "there", "latest").reference == first


def test_what_the_registry_has_is_not_sent_again(artifact: Path, registry: str) -> None:
    assert sent(artifact, registry).spared == 0
    (artifact / "evidence" / "more").write_text("later")
    again = sent(artifact, registry, "2")

    assert again.moved == len("later")
    assert again.spared > LARGE


def test_what_another_artifact_here_has_is_not_fetched_again(
    artifact: Path, registry: str, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    sent(artifact, registry)
    got(registry, there)
    manifest = Artifact.open(artifact).manifest
    other = dataclasses.replace(manifest, name="second", eos_token_ids=(2,))
    (artifact / "manifest.json").write_text(other.to_json(), "utf-8")
    sent(artifact, registry, "2")
    pulled = got(registry, there, "2")

    evidence = (path for path in (artifact / "evidence").rglob("*") if path.is_file())
    beside = sum(path.stat().st_size for path in evidence)
    assert pulled.moved == len(other.to_json().encode()) + beside
    assert (there / "second" / WEIGHTS).samefile(there / "tiny" / WEIGHTS)
    assert contents(pulled.path) == contents(artifact)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_with_two_names_is_fetched_once(
    artifact: Path, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    again = "engine/other/weights.bin"
    (artifact / again).parent.mkdir()
    os.link(artifact / WEIGHTS, artifact / again)
    manifest = Artifact.open(artifact).manifest
    files = {**manifest.files, again: manifest.files[WEIGHTS]}
    (artifact / "manifest.json").write_text(dataclasses.replace(manifest, files=files).to_json())
    if not links:

        def refuse(*paths: object) -> None:
            raise OSError("this file system has no links")

        monkeypatch.setattr(os, "link", refuse)
    pushed = sent(artifact, registry)
    pulled = got(registry, tmp_path / "there")

    assert pulled.moved == pushed.moved < 2 * LARGE
    assert pulled.spared == LARGE
    assert contents(pulled.path) == contents(artifact)
    assert (pulled.path / WEIGHTS).samefile(pulled.path / again) is links


def test_an_older_artifact_is_replaced(artifact: Path, registry: str, tmp_path: Path) -> None:
    sent(artifact, registry)
    got(registry, tmp_path / "there")
    (artifact / "evidence" / "more").write_text("later")
    sent(artifact, registry)
    pulled = got(registry, tmp_path / "there")

    assert contents(pulled.path) == contents(artifact)
    assert names(tmp_path / "there") == ["tiny"]


@pytest.mark.parametrize("cuts", [1, 4])
def test_a_download_goes_on_where_it_was_cut(
    artifact: Path,
    registry: str,
    cutting: Callable[..., Any],
    tmp_path: Path,
    cuts: int,
) -> None:
    sent(artifact, registry)
    proxy = cutting(cuts, LARGE // 3)
    pulled = got(proxy.host, tmp_path / "there")

    assert proxy.made == cuts
    assert contents(pulled.path) == contents(artifact)


def test_an_upload_that_was_cut_succeeds(
    artifact: Path, registry: str, cutting: Callable[..., Any], tmp_path: Path
) -> None:
    proxy = cutting(2, LARGE // 2, "up")
    sent(artifact, proxy.host)

    assert proxy.made == 2
    assert contents(got(registry, tmp_path / "there").path) == contents(artifact)


def test_a_pull_that_failed_leaves_nothing_to_be_seen_and_is_gone_on_with(
    artifact: Path, registry: str, cutting: Callable[..., Any], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    sent(artifact, registry)
    dying = cutting(1, LARGE // 4, last=True)
    with pytest.raises(RegistryError, match="the download failed 6 times"):
        got(dying.host, there)
    assert [name for name in names(there) if not name.startswith(".")] == []
    [scratch] = (path for path in there.iterdir() if path.is_dir())
    [part] = scratch.rglob("*.part")
    kept = part.stat().st_size
    assert kept > 0

    pulled = got(registry, there)
    assert contents(pulled.path) == contents(artifact)
    total = sum(map(len, contents(artifact).values()))
    assert pulled.moved <= total - kept, "what was fetched is not fetched again"
    assert names(there) == ["tiny"]


def test_what_an_earlier_pull_left_damaged_is_fetched_anew(
    artifact: Path, registry: str, cutting: Callable[..., Any], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    sent(artifact, registry)
    with pytest.raises(RegistryError):
        got(cutting(1, LARGE // 4, last=True).host, there)
    [part] = there.rglob("*.part")
    part.write_bytes(bytes(part.stat().st_size))

    assert contents(got(registry, there).path) == contents(artifact)


def test_a_registry_that_lies_is_found_out(artifact: Path, registry: str, tmp_path: Path) -> None:
    sent(artifact, registry)
    [root] = tmp_path.glob("data-*")
    digest = Artifact.open(artifact).manifest.files[WEIGHTS].sha256
    [blob] = root.rglob(f"{digest}/data")
    blob.write_bytes(bytes(LARGE))
    there = tmp_path / "there"
    with pytest.raises(RegistryError, match="not what its digest says"):
        got(registry, there)
    assert [name for name in names(there) if not name.startswith(".")] == []


def test_an_artifact_that_may_not_be_used_does_not_appear(
    artifact: Path, registry: str, tmp_path: Path
) -> None:
    sent(artifact, registry)
    policy = Policy(sources=("hub:*",))
    with pytest.raises(PolicyError):
        got(registry, tmp_path / "there", check=lambda found: policy.check(found, "always"))
    assert not (tmp_path / "there" / "tiny").exists()


def test_what_is_no_artifact_is_never_replaced(
    artifact: Path, registry: str, tmp_path: Path
) -> None:
    sent(artifact, registry)
    (tmp_path / "there" / "tiny").mkdir(parents=True)
    (tmp_path / "there" / "tiny" / "precious").write_text("mine")
    with pytest.raises(RegistryError, match="is no artifact"):
        got(registry, tmp_path / "there")
    assert (tmp_path / "there" / "tiny" / "precious").read_text() == "mine"


def test_an_altered_artifact_is_not_pushed(artifact: Path, registry: str) -> None:
    (artifact / WEIGHTS).write_bytes(bytes(LARGE))
    with pytest.raises(Exception, match="altered"):
        sent(artifact, registry)


def test_two_pulls_of_one_artifact(artifact: Path, registry: str, tmp_path: Path) -> None:
    import fcntl

    pushed, there = sent(artifact, registry), tmp_path / "there"
    there.mkdir()
    assert pushed.reference.digest is not None
    with (there / f".pull-{pushed.reference.digest[:16]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RegistryError, match="another process is pulling"):
            got(registry, there)
    assert got(registry, there).path.is_dir()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../escaped", "outside its folder"),
        ("/etc/escaped", "outside its folder"),
        ("a/../../escaped", "outside its folder"),
        ("a\\b", "no plain path"),
        ("a//b", "no plain path"),
        ("manifest.json", "each path once"),
    ],
)
def test_a_manifest_that_would_write_elsewhere(
    artifact: Path, registry: str, tmp_path: Path, path: str, said: str
) -> None:
    import requests

    sent(artifact, registry)
    place = f"http://{registry}/v2/models/tiny/manifests/1"
    media = "application/vnd.oci.image.manifest.v1+json"
    data = requests.get(place, headers={"Accept": media}, timeout=10).json()
    data["layers"][0]["annotations"]["org.opencontainers.image.title"] = path
    put = requests.put(place, data=json.dumps(data), headers={"Content-Type": media}, timeout=10)
    assert put.ok
    with pytest.raises(RegistryError, match=said):
        got(registry, tmp_path / "there")
    assert not list(tmp_path.rglob("escaped"))


def test_a_file_that_the_manifest_does_not_list(
    artifact: Path, registry: str, tmp_path: Path
) -> None:
    import requests

    sent(artifact, registry)
    place = f"http://{registry}/v2/models/tiny/manifests/1"
    media = "application/vnd.oci.image.manifest.v1+json"
    data = requests.get(place, headers={"Accept": media}, timeout=10).json()
    extra = json.loads(json.dumps(data["layers"][0]))
    extra["annotations"]["org.opencontainers.image.title"] = "extra.so"
    data["layers"].append(extra)
    requests.put(place, data=json.dumps(data), headers={"Content-Type": media}, timeout=10)
    with pytest.raises(RegistryError, match=r"extra\.so: is in the registry, and not"):
        got(registry, tmp_path / "there")


def test_an_image_of_something_else(registry: str, tmp_path: Path) -> None:
    import requests

    base, media = f"http://{registry}/v2/models/tiny", "application/vnd.oci.image.manifest.v1+json"
    from enginewright.runtime.registry.client import Repository
    from enginewright.runtime.registry.package import EMPTY, digest_of

    reference = Reference.parse(f"oci://{registry}/models/tiny:1")
    Repository(reference).upload_bytes(EMPTY, digest_of(EMPTY))
    data = {
        "schemaVersion": 2,
        "mediaType": media,
        "config": {"mediaType": "application/x", "digest": digest_of(EMPTY), "size": 2},
        "layers": [],
    }
    put = requests.put(
        f"{base}/manifests/1", data=json.dumps(data), headers={"Content-Type": media}, timeout=10
    )
    assert put.ok, put.text
    with pytest.raises(RegistryError, match="no artifact of Enginewright, but 'application/x'"):
        got(registry, tmp_path)


def test_a_tag_that_is_not_there(registry: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="404"):
        got(registry, tmp_path, "never")


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="failed 6 times"):
        got("127.0.0.1:9", tmp_path)


def test_a_login_is_taken_from_dockers_config(
    artifact: Path,
    start_registry: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = tmp_path / "users"
    users.write_text(f"ann:{SECRET}\n")
    host = start_registry(f"auth: {{htpasswd: {{realm: here, path: {users}}}}}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(RegistryError, match="asks for a login"):
        sent(artifact, host)
    for password, good in (("wrong", False), ("secret", True)):
        login = base64.b64encode(f"ann:{password}".encode()).decode()
        config = {"auths": {host: {"auth": login}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if good:
            sent(artifact, host)
        else:
            with pytest.raises(RegistryError, match="401"):
                sent(artifact, host)
    assert contents(got(host, tmp_path / "there").path) == contents(artifact)


class _Tokens(BaseHTTPRequestHandler):
    """Gives a token to those who log in as ann."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(b"ann:secret").decode()
        good = self.headers.get("Authorization") == wanted
        good = good and "scope=repository%3Amodels%2Ftiny%3A" in self.path
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(b'{"token": "abc"}' if good else b"{}")

    def log_message(self, *arguments: object) -> None:
        """Quietly."""


def test_a_token_is_fetched_where_the_registry_wants_one(
    artifact: Path,
    start_registry: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), _Tokens) as tokens:
        threading.Thread(target=tokens.serve_forever, daemon=True).start()
        realm = f"http://127.0.0.1:{tokens.server_port}/token"
        host = start_registry(f"auth: {{silly: {{realm: '{realm}', service: here}}}}")
        with pytest.raises(RegistryError, match="asks for a login"):
            sent(artifact, host)
        login = base64.b64encode(b"ann:secret").decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))
        sent(artifact, host)
        assert contents(got(host, tmp_path / "there").path) == contents(artifact)
        tokens.shutdown()
