"""The bill of materials: valid by CycloneDX's own schema, complete, and always the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.trust.bom import bill_of_materials


@pytest.fixture
def manifest(tiny_artifact: Path) -> Manifest:
    """The tiny artifact's, with tools and measures as a build has them."""
    found = Artifact.open(tiny_artifact).manifest
    measures = {"test": {"measures": {"perplexity": 22.5, "top1_agreement": 0.99}}}
    source = replace(found.source, revision="0" * 40)
    tools = {"onnx": "1.23.2", "torch": "2.13.0+cpu"}
    return replace(found, source=source, tools=tools, conformance=measures)


def test_it_is_valid(manifest: Manifest) -> None:
    pytest.importorskip("cyclonedx", reason="the schema comes with cyclonedx-python-lib")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = bill_of_materials(manifest, "0" * 64)
    assert validator.validate_str(text) is None
    wrong = text.replace('"machine-learning-model"', '"magic"')
    assert validator.validate_str(wrong) is not None


def test_it_names_every_file_tool_and_the_source(manifest: Manifest) -> None:
    text = bill_of_materials(manifest, "a" * 64)
    told = json.loads(text)

    component = told["metadata"]["component"]
    hashes = {each["name"]: each["hashes"][0]["content"] for each in component["components"]}
    assert hashes == {name: entry.sha256 for name, entry in manifest.files.items()}
    tools = told["metadata"]["tools"]["components"]
    assert {each["name"]: each["version"] for each in tools} == dict(manifest.tools)
    [source] = told["components"]
    assert {"name": "enginewright:source_digest", "value": manifest.source.digest} in source[
        "properties"
    ]
    metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {(each["type"], each["value"], each["slice"]) for each in metrics} == {
        ("perplexity of the engine", "22.5", "plan test"),
        ("top-1 agreement with the reference", "0.99", "plan test"),
    }
    assert bill_of_materials(manifest, "a" * 64) == text
    assert bill_of_materials(manifest, "b" * 64) != text
