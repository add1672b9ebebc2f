"""What an artifact's plugins bring along, and what this installation has of the same plugins.

The plugins' modules are imported when they are asked about.
"""

from __future__ import annotations

from pathlib import Path

from enginewright.runtime.artifact.manifest import NvidiaEntry
from enginewright.runtime.doctor.facts import InstalledPlugin


def kernel_capabilities(folder: Path, nvidia: NvidiaEntry) -> dict[str, frozenset[str]]:
    """By plugin, the compute capabilities that its kernels in the artifact run on.

    A plugin whose index this installation cannot read is left out.
    """
    if not nvidia.plugins:
        return {}
    from enginewright.plugins.attention.cuda.kernel_set import KernelSet, KernelSetError

    held = {}
    for plugin in nvidia.plugins:
        try:
            held[plugin.name] = frozenset(KernelSet.read(folder / plugin.kernels).capabilities)
        except KernelSetError:
            continue
    return held


def installed_plugins() -> dict[str, InstalledPlugin]:
    """The plugins of this installation by name."""
    from enginewright.plugins.attention.cuda.kernel_set import abi_digest
    from enginewright.plugins.attention.tensorrt import (
        PLUGIN_NAME,
        PLUGIN_NAMESPACE,
        PLUGIN_VERSION,
    )

    return {PLUGIN_NAME: InstalledPlugin(PLUGIN_VERSION, PLUGIN_NAMESPACE, abi_digest())}
