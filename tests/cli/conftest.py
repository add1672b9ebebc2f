"""What the verbs' tests share: an artifact for NVIDIA GPUs."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.manifest import FileEntry, NvidiaEntry, ProfileEntry

ENGINE = "engine/model.engine"
SHAPES = {
    "input_ids": ((1, 1), (1, 1), (24, 1)),
    "logits_index": ((1,), (1,), (24,)),
    "k_cache.0": ((1, 2, 600, 16), (1, 2, 600, 16), (24, 2, 600, 16)),
}


@pytest.fixture
def rtx_artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """The tiny artifact with a file in place of its engine that has the header of one for 8.6.

    Its graph was interpreted at build, it says; no GPU can run it.
    """
    folder = shutil.copytree(tiny_artifact, tmp_path / "rtx")
    header = struct.pack("<4s12xQ4B4sB", b"vtrt", 64, 1, 7, 1, 116, b"vtrt", 0x04)
    (folder / ENGINE).write_bytes(header.ljust(64, b"\0"))
    manifest = Artifact.open(folder).manifest
    entry = replace(
        manifest.engines[0],
        target="tensorrt_rtx",
        plan="engine",
        precision="fp16",
        model=ENGINE,
        files=(ENGINE,),
        nvidia=NvidiaEntry(
            library="tensorrt_rtx",
            library_version="1.7.1.116",
            capabilities=("8.6",),
            later=False,
            profiles=(ProfileEntry("decode", SHAPES),),
            aliases={"k_cache.0.out": "k_cache.0", "v_cache.0.out": "v_cache.0"},
            plugins=(),
            weights_bytes=2**30,
        ),
    )
    graph = {"graph": "passed", "device": "not run", "measures": {}, "rows": []}
    changed = replace(
        manifest,
        engines=(entry,),
        files={**manifest.files, ENGINE: FileEntry(64, sha256_file(folder / ENGINE))},
        conformance={"engine": graph},
    )
    (folder / "manifest.json").write_text(changed.to_json(), "utf-8")
    return folder
