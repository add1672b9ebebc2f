"""``inspect``: everything that the manifest says, for people and for machines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import FileEntry, PluginEntry, TensorEntry, seal


def test_the_page_names_what_the_artifact_holds(tiny_artifact: Path) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    result = CliRunner().invoke(main, ["inspect", str(tiny_artifact)])

    assert result.exit_code == 0, result.output
    wanted = [manifest.name, manifest.source.digest, manifest.source.architecture, *manifest.files]
    for engine in manifest.engines:
        wanted += [engine.target, engine.precision, str(engine.limits.max_context)]
    for name, default in manifest.sampling_defaults.items():
        wanted += [f"{name} = {default.value}", default.origin]
    assert not [text for text in wanted if text not in result.stdout]


def test_json_is_the_manifest_and_what_follows_from_it(tiny_artifact: Path) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    result = CliRunner().invoke(main, ["inspect", str(tiny_artifact), "--json"])
    data = json.loads(result.stdout)

    kv = manifest.engines[0].kv
    assert data["engines"][0]["kv"]["bytes_per_token"] == (
        2 * kv.layers * kv.kv_heads * kv.head_dim * 4
    )
    content = (tiny_artifact / "manifest.json").read_bytes()
    assert data["digest"] == f"sha256:{sha256(content).hexdigest()}"
    assert data["total_bytes"] == sum(entry.size for entry in manifest.files.values())
    stated = json.loads(content)
    for entry in data["engines"]:
        del entry["kv"]["bytes_per_token"]
    del data["digest"], data["total_bytes"]
    assert data == stated


def test_the_conformance_table_is_shown(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    rows = [
        {"name": "top-1 agreement", "value": 0.9614, "bound": ">= 0.95", "passed": True},
        {"name": "mean KL", "value": 0.3, "bound": "<= 0.02", "passed": False},
        {"name": "greedy ties", "value": 2, "bound": "", "passed": True},
    ]
    manifest["conformance"] = {"plain": {"rows": rows}}
    (folder / "manifest.json").write_text(seal(manifest), "utf-8")
    lines = CliRunner().invoke(main, ["inspect", str(folder)]).stdout.splitlines()

    shown = [line.split() for line in lines]
    assert ["top-1", "agreement", "0.9614", ">=", "0.95", "ok"] in shown
    assert ["mean", "KL", "0.3", "<=", "0.02", "MISSED"] in shown
    assert ["greedy", "ties", "2"] in shown


def test_what_was_tuned_is_shown(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (engine,) = manifest["engines"]
    engine |= {"cpu_kernels": "amx", "library": engine["model"], "platform": "here"}
    manifest["conformance"] = {engine["plan"]: {"rows": [], "cpu_kernels": "amx"}}
    tiles, vectors, plain = ({"decode": d, "prefill": 0.25} for d in (0.004, 0.005, 0.006))
    manifest["tuning"] = {
        "processor": "A Processor",
        "threads": 2,
        "seconds": {engine["plan"]: tiles, "other": plain},
        "cpu_kernels": {engine["plan"]: {"amx": tiles, "avx512vnni": vectors}},
    }
    (folder / "manifest.json").write_text(seal(manifest), "utf-8")
    lines = CliRunner().invoke(main, ["inspect", str(folder)]).stdout.splitlines()

    assert "kernels      amx, the fastest on A Processor" in lines
    assert f"plan {engine['plan']}, kernels amx" in lines
    at = lines.index("tuned on A Processor with 2 threads (ms)")
    assert [line.split() for line in lines[at + 1 : at + 6] if "--" not in line] == [
        ["plan", "kernels", "decode", "prefill"],
        ["other", "6.0", "250.0"],
        [engine["plan"], "amx", "4.0", "250.0"],
        [engine["plan"], "avx512vnni", "5.0", "250.0"],
    ]


def test_a_truncated_file_is_named(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    (folder / "tokenizer.json").write_bytes(b"{}")
    result = CliRunner().invoke(main, ["inspect", str(folder)])

    assert result.exit_code == 1
    assert f"error: {folder / 'tokenizer.json'}" in result.stderr


def test_an_engine_for_gpus_is_shown(rtx_artifact: Path) -> None:
    lines = CliRunner().invoke(main, ["inspect", str(rtx_artifact)]).stdout.splitlines()

    assert "library      tensorrt_rtx 1.7.1.116" in lines
    assert "capabilities 8.6" in lines
    profile = "decode: input_ids [1, 1] to [24, 1], logits_index [1] to [24]"
    assert f"profile      {profile}" in lines
    [aliases] = (line for line in lines if line.startswith("aliases"))
    assert aliases.split()[1:3] == ["2", "outputs"]
    assert "plan engine: graph passed, device not run" in lines
    data = json.loads(CliRunner().invoke(main, ["inspect", str(rtx_artifact), "--json"]).stdout)
    assert data["engines"][0]["nvidia"]["capabilities"] == ["8.6"]
    assert len(data["engines"][0]["nvidia"]["aliases"]) == 2


def test_plugins_are_shown_with_their_kernels(rtx_artifact: Path) -> None:
    manifest = Artifact.open(rtx_artifact).manifest
    [engine] = manifest.engines
    kernels = [f"engine/kernels/{name}" for name in ("kernels.json", "a.cubin", "b.cubin")]
    plugin = PluginEntry("Attention", "1", "enginewright", "0123abcd", kernels[0])
    assert engine.nvidia is not None
    nvidia = replace(engine.nvidia, plugins=(plugin,), later=True)
    engine = replace(engine, files=(*engine.files, *kernels), nvidia=nvidia)
    files = {**manifest.files, **dict.fromkeys(kernels, FileEntry(1, sha256(b"x").hexdigest()))}
    for name in kernels:
        (rtx_artifact / name).parent.mkdir(exist_ok=True)
        (rtx_artifact / name).write_bytes(b"x")
    text = replace(manifest, engines=(engine,), files=files).to_json()
    (rtx_artifact / "manifest.json").write_text(text, "utf-8")
    lines = CliRunner().invoke(main, ["inspect", str(rtx_artifact)]).stdout.splitlines()

    assert "plugin       enginewright::Attention 1, 2 kernels, ABI 0123abcd" in lines
    assert "capabilities 8.6 and later" in lines


def test_logits_that_stay_on_the_device_are_shown(rtx_artifact: Path) -> None:
    manifest = Artifact.open(rtx_artifact).manifest
    [engine] = manifest.engines
    top = TensorEntry("top_logits", "output", "float32", ("logits", 64))
    changed = replace(manifest, engines=(replace(engine, io=(*engine.io, top)),))
    (rtx_artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    lines = CliRunner().invoke(main, ["inspect", str(rtx_artifact)]).stdout.splitlines()

    assert "logits       on the device, 64 of each row come to the host" in lines
