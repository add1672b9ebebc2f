"""What a load asks before it opens an engine for NVIDIA GPUs."""

from __future__ import annotations

from dataclasses import replace

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.doctor.checks import (
    device_findings,
    driver_version,
    package_findings,
    plugin_abi,
)
from enginewright.runtime.doctor.findings import refuse
from enginewright.runtime.doctor.installed import read_installed
from enginewright.runtime.doctor.kernels import kernel_capabilities
from enginewright.runtime.doctor.needs import needs
from enginewright.runtime.doctor.requirements import version_compatible


def check_device(artifact: Artifact, entry: EngineEntry, device: DeviceFacts) -> None:
    """Raise DeviceError, with the code of the check, for the first that forbids the engine.

    The checks are those of ``enginewright doctor``, for ``device``; of memory a load asks for one
    row of the entry's longest context, because the cache grows with the rows that run.
    """
    nvidia = entry.nvidia
    assert nvidia is not None
    installed = read_installed()
    where = f"{artifact.path}, plan {entry.plan}"
    compatible = version_compatible(artifact.manifest)
    refuse(where, package_findings(entry, installed, version_compatible=compatible))
    refuse(where, (plugin_abi(plugin, installed) for plugin in nvidia.plugins))
    refuse(where, [driver_version(device, installed)])
    takes = replace(needs(entry, artifact.manifest.files), rows=1)
    kernels = kernel_capabilities(artifact.path, nvidia)
    refuse(where, device_findings(nvidia, device, takes, kernels))
