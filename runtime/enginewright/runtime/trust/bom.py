"""A bill of materials: CycloneDX 1.6 with the model, its source, and the tools that built it.

It follows from the manifest alone: the same artifact gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.trust.provenance import source_uri

BOM_FILE = "evidence/bom.cdx.json"
_METRICS = {
    "perplexity": "perplexity of the engine",
    "reference_perplexity": "perplexity of the reference",
    "mean_kl": "mean KL divergence from the reference (nats)",
    "top1_agreement": "top-1 agreement with the reference",
    "greedy_agreement": "greedy agreement with the reference",
}


def bill_of_materials(manifest: Manifest, manifest_sha256: str) -> str:
    """The document's text."""
    source = manifest.source
    model = f"engine@sha256:{manifest_sha256}"
    return json.dumps(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, manifest_sha256)}",
            "version": 1,
            "metadata": {
                "component": {
                    "type": "machine-learning-model",
                    "bom-ref": model,
                    "name": manifest.name,
                    "hashes": [_hash(manifest_sha256)],
                    "modelCard": _model_card(manifest),
                    "components": list(_files(manifest)),
                },
                "tools": {"components": [*_tools(manifest)]},
            },
            "components": [
                {
                    "type": "machine-learning-model",
                    "bom-ref": source.digest,
                    "name": source_uri(manifest),
                    **({} if source.revision is None else {"version": source.revision}),
                    "properties": [
                        {"name": "enginewright:source_digest", "value": source.digest},
                        {"name": "enginewright:architecture", "value": source.architecture},
                    ],
                }
            ],
            "dependencies": [{"ref": model, "dependsOn": [source.digest]}, {"ref": source.digest}],
        },
        indent=2,
        sort_keys=True,
    )


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _files(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for name, entry in sorted(manifest.files.items()):
        yield {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [_hash(entry.sha256)],
        }


def _tools(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for name, version in sorted(manifest.tools.items()):
        yield {"type": "library", "name": name, "version": version}


def _model_card(manifest: Manifest) -> dict[str, Any]:
    measured = (
        {"type": text, "value": f"{measures[name]:.6g}", "slice": f"plan {plan}"}
        for plan, measures in _measures(manifest)
        for name, text in _METRICS.items()
        if name in measures
    )
    precisions = dict.fromkeys(engine.precision for engine in manifest.engines)
    return {
        "modelParameters": {
            "task": "text-generation",
            "modelArchitecture": manifest.source.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(measured)},
        "properties": [
            {"name": "enginewright:precision", "value": ", ".join(precisions)},
            {"name": "enginewright:targets", "value": ", ".join(_targets(manifest))},
        ],
    }


def _measures(manifest: Manifest) -> Iterator[tuple[str, Mapping[str, float]]]:
    for plan, report in manifest.conformance.items():
        yield plan, report.get("measures", {})


def _targets(manifest: Manifest) -> Mapping[str, None]:
    return dict.fromkeys(engine.target for engine in manifest.engines)
