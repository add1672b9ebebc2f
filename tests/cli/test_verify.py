"""``verify``: an artifact with reference values passes, misses a bound, or is damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime import plans, verification
from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.manifest import FileEntry, PluginEntry
from enginewright.runtime.artifact.native_code import this_platform
from enginewright.runtime.doctor.driver import read_driver
from enginewright.runtime.errors import DeviceError, MissingDependencyError, TargetError
from enginewright.runtime.trust.bom import BOM_FILE, bill_of_materials


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of an artifact that was built, with the reference values of its own build."""
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


def set_bounds(folder: Path, bounds: dict[str, float]) -> None:
    """Write the bounds into the manifest."""
    manifest = Artifact.open(folder).manifest
    precision = manifest.engines[0].precision
    recipe = {**manifest.recipe, "precision": precision, "conformance": {precision: bounds}}
    changed = dataclasses.replace(manifest, recipe=recipe)
    (folder / "manifest.json").write_text(changed.to_json(), "utf-8")


def verify(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["verify", str(folder), "--threads", "1", *arguments])


def test_an_artifact_that_answers_as_its_reference_passes(artifact: Path) -> None:
    result = verify(artifact)

    assert result.exit_code == 0, result.output
    assert "greedy agreement" in result.stdout
    assert result.stdout.endswith("passed\n")


def test_a_missed_bound_is_exit_code_1(artifact: Path) -> None:
    set_bounds(artifact, {"max_perplexity_increase": -0.5})
    result = verify(artifact)

    assert result.exit_code == 1
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("perplexity change"))
    assert row.split()[-1] == "MISSED"


@pytest.mark.parametrize(("bound", "passed"), [(0.001, True), (-0.5, False)])
def test_json_says_the_same(artifact: Path, bound: float, passed: bool) -> None:
    set_bounds(artifact, {"max_perplexity_increase": bound})
    result = verify(artifact, "--json")
    data = json.loads(result.stdout)

    assert data["passed"] is passed
    assert result.exit_code == (0 if passed else 1)
    (plan,) = data["plans"].values()
    assert plan["passed"] is passed
    assert {"name", "value", "bound", "passed"} == plan["rows"][0].keys()


def test_what_the_manifest_does_not_cover_is_noted(artifact: Path) -> None:
    assert "note: " not in verify(artifact).stdout
    manifest = Artifact.open(artifact).manifest
    bom = artifact / BOM_FILE
    bom.parent.mkdir(exist_ok=True)
    bom.write_text(bill_of_materials(manifest, sha256_file(artifact / "manifest.json")))
    assert "note: " not in verify(artifact).stdout

    (artifact / "engine" / "more.bin").write_text("extra")
    bom.write_text(bom.read_text().replace(manifest.source.digest, "sha256:other"))
    result = verify(artifact)
    assert result.exit_code == 0
    assert "note: engine/more.bin: is not in the manifest, and is never read" in result.stdout
    assert f"note: {BOM_FILE}: does not say what follows from the manifest" in result.stdout
    assert len(json.loads(verify(artifact, "--json").stdout)["notes"]) == 2


def test_one_flipped_byte_is_found(artifact: Path) -> None:
    weights = artifact / Artifact.open(artifact).engine().files[-1]
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    result = verify(artifact)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {weights}: ")


@pytest.mark.skipif(bool(read_driver().devices), reason="this machine has a GPU")
def test_an_engine_whose_device_is_not_here(rtx_artifact: Path) -> None:
    result = verify(rtx_artifact, "--attest")

    assert result.exit_code == 0, result.output
    assert "graph: passed at build" in result.stdout
    assert "device: not run here (" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last == "every hash is right; the device has not been run: plan engine"
    assert not (rtx_artifact / "evidence" / "attestations").exists(), "nothing was measured"
    data = json.loads(verify(rtx_artifact, "--json").stdout)
    assert (data["passed"], data["device_run"], data["attestation"]) == (True, False, None)
    assert data["plans"]["engine"]["graph"] == "passed"


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (DeviceError("why", "no_driver"), 0),
        (DeviceError("why", "no_device"), 0),
        (MissingDependencyError("why"), 0),
        *(
            (DeviceError("why", code), 1)
            for code in ("capability", "library_version", "plugin_abi", "out_of_memory")
        ),
        (TargetError("why"), 1),
    ],
)
def test_only_a_gpu_that_is_not_here_excuses_an_engine(
    rtx_artifact: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, exit_code: int
) -> None:
    def refuses(*arguments: Any, **how: Any) -> None:
        raise error

    monkeypatch.setattr(plans, "open_engine", refuses)
    result = verify(rtx_artifact)

    assert result.exit_code == exit_code
    assert "why" in (result.stderr if exit_code else result.stdout)


def test_kernels_that_nobody_vouches_for_are_no_missing_gpu(rtx_artifact: Path) -> None:
    manifest = Artifact.open(rtx_artifact).manifest
    [engine] = manifest.engines
    index = "engine/kernels.json"
    (rtx_artifact / index).write_bytes(b"x")
    plugin = PluginEntry("Attention", "1", "enginewright", "0123", index)
    assert engine.nvidia is not None
    nvidia = dataclasses.replace(engine.nvidia, plugins=(plugin,))
    entry = dataclasses.replace(engine, files=(*engine.files, index), nvidia=nvidia)
    files = {**manifest.files, index: FileEntry(1, hashlib.sha256(b"x").hexdigest())}
    changed = dataclasses.replace(manifest, engines=(entry,), files=files)
    (rtx_artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    result = verify(rtx_artifact)

    assert result.exit_code == 1
    assert "--allow-native-code" in result.stderr


@pytest.mark.parametrize("during", ["measure", "measure_speed"])
def test_an_engine_that_fails_while_it_runs_fails_the_command(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    def fails(*arguments: Any) -> None:
        raise DeviceError("the GPU fell off the bus", "device_failed")

    monkeypatch.setattr(verification, during, fails)
    result = verify(artifact, "--attest")

    assert result.exit_code == 1
    assert "failed while it ran: the GPU fell off the bus" in result.stderr


@pytest.mark.skipif(bool(read_driver().devices), reason="this machine has a GPU")
def test_the_device_can_be_required(rtx_artifact: Path) -> None:
    assert verify(rtx_artifact, "--require-device").exit_code == 1


def test_a_byte_of_an_engine_that_does_not_run_here(rtx_artifact: Path) -> None:
    (rtx_artifact / "engine/model.engine").write_bytes(b"x" * 64)
    result = verify(rtx_artifact)

    assert result.exit_code == 1
    assert "model.engine: SHA-256" in result.stderr


def test_an_attestation_says_what_ran_where(artifact: Path) -> None:
    before = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    result = verify(artifact, "--attest", "--require-device")

    assert result.exit_code == 0, result.output
    [path] = (artifact / "evidence" / "attestations").iterdir()
    assert f"attestation {path}" in result.stdout.splitlines()
    digest = Artifact.open(artifact).digest()
    assert path.name.endswith(f"-{digest[7:23]}.json")
    data = json.loads(path.read_text("utf-8"))
    assert (data["format"], data["artifact"], data["artifact_digest"]) == (1, "tiny", digest)
    assert data["device"]["kind"] == "cpu"
    assert data["device"]["name"]
    assert {"enginewright", "python", "onnxruntime"} <= data["versions"].keys()
    assert datetime.fromisoformat(data["date"]).tzinfo is not None
    [plan] = data["plans"].values()
    assert plan["passed"]
    assert plan["measures"]["top1_agreement"] > 0.99
    assert plan["speed"]["prompt_tokens"] > 0
    assert plan["speed"]["prefill_tokens_per_second"] > 0
    assert plan["speed"]["decode_tokens_per_second"] > 0
    assert str(artifact) not in path.read_text("utf-8")
    assert {path: path.read_bytes() for path in before} == before
    assert Artifact.open(artifact, "always").digest() == digest, "outside the hashes"


def test_an_attestation_names_no_folder_of_the_machine(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    [engine] = manifest.engines
    (artifact / "engine/operators.so").write_bytes(b"x")
    entry = FileEntry(1, hashlib.sha256(b"x").hexdigest())
    native = dataclasses.replace(
        engine,
        plan="native",
        files=(*engine.files, "engine/operators.so"),
        library="engine/operators.so",
        platform=this_platform(),
    )
    changed = dataclasses.replace(
        manifest,
        engines=(native, engine),
        files={**manifest.files, "engine/operators.so": entry},
    )
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    result = verify(artifact, "--attest")

    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("passed; not run: native\n")
    [path] = (artifact / "evidence" / "attestations").iterdir()
    text = path.read_text("utf-8")
    assert "not compiled on this machine" in json.loads(text)["plans"]["native"]["not_run"]
    assert str(artifact) not in text


def test_without_attest_nothing_is_written(artifact: Path) -> None:
    verify(artifact)

    assert not (artifact / "evidence" / "attestations").exists()


def test_an_attestation_that_cannot_be_written(artifact: Path) -> None:
    (artifact / "evidence").mkdir(exist_ok=True)
    (artifact / "evidence" / "attestations").write_text("in the way")
    result = verify(artifact, "--attest")

    assert result.exit_code == 1
    assert "the attestation cannot be written" in result.stderr
