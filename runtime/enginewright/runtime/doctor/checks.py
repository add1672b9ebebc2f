"""What of the device and of the installed software keeps an engine from running.

Functions of plain data, called by ``enginewright doctor`` and, with ``refuse``, by a load. An
entry's limits are those that are asked for (EngineOptions.lowered).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from enginewright.runtime.artifact.manifest import EngineEntry, NvidiaEntry, PluginEntry
from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.cuda.memory import size_text
from enginewright.runtime.doctor.facts import DriverFacts, Installed, InstalledPlugin
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.needs import Needs
from enginewright.runtime.doctor.requirements import (
    release,
    requirements,
    same_release,
)

_DRIVERS = {11: "450", 12: "525", 13: "580"}
"""The first driver branch of each CUDA major version; any later one runs its minor versions."""


def device_findings(
    nvidia: NvidiaEntry,
    device: DeviceFacts,
    needs: Needs,
    kernels: Mapping[str, frozenset[str]],
) -> Iterator[Finding]:
    """Whether the engine runs on a GPU and fits its memory.

    ``kernels``: by plugin, the compute capabilities that its kernels in the artifact run on.
    """
    yield capability(nvidia, device)
    for plugin in nvidia.plugins:
        yield plugin_kernels(plugin, kernels.get(plugin.name), device)
    yield device_memory(needs, device)


def package_findings(
    entry: EngineEntry, installed: Installed, *, version_compatible: bool = False
) -> Iterator[Finding]:
    """What the plan needs is installed, in a version that runs it.

    ``version_compatible``: the engine was built for later versions of TensorRT as well.
    """
    needed = requirements(entry)
    absent = [each.any_of[0] for each in needed if each.installed(installed) is None]
    if absent:
        yield Finding(
            "package_missing",
            "problem",
            f"not installed: {', '.join(absent)}",
            f"target {entry.target} runs on it",
            f"pip install 'enginewright[{needed[0].extra}]'",
        )
    else:
        names = [each.installed(installed) or "" for each in needed]
        shown = ", ".join(f"{name} {installed.versions[name]}" for name in names)
        yield Finding("package_missing", "ok", shown)
    library = needed[0].installed(installed)
    if library is not None and needed[0].same_version:
        yield _same_version(entry, library, installed.versions[library], version_compatible)
    elif library is not None:
        yield _new_enough(entry, library, needed[0].extra, installed)


def _same_version(entry: EngineEntry, library: str, version: str, compatible: bool) -> Finding:
    """TensorRT runs engines of its own version, and those that were built to be compatible of
    earlier ones of the same major version."""
    built = entry.nvidia.library_version if entry.nvidia is not None else ""
    found, ours, theirs = f"{library} {version}", release(version), release(built)
    if same_release(version, built) or (compatible and ours[:1] == theirs[:1] and ours >= theirs):
        return Finding("library_version", "ok", f"{found}, engine built by {built}")
    return Finding(
        "library_version",
        "problem",
        found,
        f"{built}, which built the engine",
        f"pip install '{library}=={built}', or build the artifact again with {version}",
    )


def _new_enough(entry: EngineEntry, library: str, extra: str, installed: Installed) -> Finding:
    """ONNX Runtime runs what was made for an older one."""
    version, least = installed.versions[library], installed.least.get(library, "0")
    if entry.nvidia is not None:
        least = max(least, entry.nvidia.library_version, key=release)
    if release(version) >= release(least):
        return Finding("library_version", "ok", f"{library} {version}, {least} is enough")
    return Finding(
        "library_version",
        "problem",
        f"{library} {version}",
        f"{least} or newer",
        f"pip install --upgrade 'enginewright[{extra}]'",
    )


def driver_findings(
    nvidia: NvidiaEntry, driver: DriverFacts, installed: Installed
) -> Iterator[Finding]:
    """The driver, its GPUs and its CUDA version, up to the first that is not there."""
    if driver.problem is not None:
        yield Finding(
            "no_driver",
            "problem",
            driver.problem,
            "NVIDIA's driver",
            "install it; start a container with the GPU (docker run --gpus all)",
        )
        return
    yield Finding("no_driver", "ok", f"version {driver.version or 'unknown'}")
    if not driver.devices:
        yield Finding(
            "no_device",
            "problem",
            "the driver shows no GPU to this process",
            "one GPU",
            "check CUDA_VISIBLE_DEVICES and, in a container, that it was given a GPU",
        )
        return
    shown = "; ".join(f"{i}: {_shown(each)}" for i, each in enumerate(driver.devices))
    yield _choice(nvidia, driver.devices, shown)
    yield driver_version(driver.devices[0], installed)


def _choice(nvidia: NvidiaEntry, devices: tuple[DeviceFacts, ...], shown: str) -> Finding:
    """The GPUs; a warning where the first does not run the engine and another does."""
    able = [i for i, each in enumerate(devices) if runs_on(nvidia, each.capability)]
    if not able or able[0] == 0:
        return Finding("no_device", "ok", shown)
    return Finding(
        "no_device",
        "warning",
        shown,
        "the first GPU is the one that is used",
        f"set CUDA_VISIBLE_DEVICES={able[0]}, whose capability the engine was built for",
    )


def driver_version(device: DeviceFacts, installed: Installed) -> Finding:
    """Whether the driver runs the CUDA major version of the installed packages."""
    bindings = installed.versions.get("cuda-bindings", f"{max(_DRIVERS)}")
    major = release(bindings)[0]
    if not device.cuda:
        return Finding("driver_version", "warning", "the driver does not tell its CUDA version")
    if release(device.cuda)[0] >= major:
        return Finding("driver_version", "ok", f"{device.cuda}, packages are for {major}")
    branch = f" (driver {_DRIVERS[major]} or newer)" if major in _DRIVERS else ""
    return Finding(
        "driver_version",
        "problem",
        f"the driver runs CUDA {device.cuda} at most",
        f"CUDA {major}{branch}",
        "upgrade NVIDIA's driver",
    )


def capability(nvidia: NvidiaEntry, device: DeviceFacts) -> Finding:
    """Whether the engine was built for the GPU."""
    found = f"{device.name}, capability {device.capability}"
    if runs_on(nvidia, device.capability):
        return Finding("capability", "ok", found)
    again = "build again with it in the recipe's capabilities, if the library supports it"
    return Finding("capability", "problem", found, _capabilities(nvidia), again)


def runs_on(nvidia: NvidiaEntry, found: str) -> bool:
    """Whether an engine runs on a compute capability: a listed one, or a later one if it may."""
    highest = max(map(release, nvidia.capabilities), default=())
    return found in nvidia.capabilities or (nvidia.later and release(found) > highest)


def plugin_abi(plugin: PluginEntry, installed: Installed) -> Finding:
    """Whether the plugin that was built for is the one that is installed."""
    wanted = InstalledPlugin(plugin.version, plugin.namespace, plugin.abi)
    ours = installed.plugins.get(plugin.name)
    if ours == wanted:
        return Finding("plugin_abi", "ok", _plugin(plugin.name, wanted))
    if ours is None:
        found = f"{plugin.name}: no such plugin in this enginewright"
    else:
        found = f"{_plugin(plugin.name, ours)} here"
    return Finding(
        "plugin_abi",
        "problem",
        found,
        f"{_plugin(plugin.name, wanted)}, which the engine was built for",
        "install the version of enginewright that built the artifact, or build it again",
    )


def _plugin(name: str, plugin: InstalledPlugin) -> str:
    return f"{plugin.namespace}::{name} {plugin.version}, ABI {plugin.abi[:12]}"


def plugin_kernels(
    plugin: PluginEntry, held: frozenset[str] | None, device: DeviceFacts
) -> Finding:
    """Whether the artifact holds the plugin's kernels for the GPU; ``held`` None: unreadable."""
    again = "build again with it in the recipe's capabilities"
    if held is None:
        found = f"{plugin.kernels}: this installation cannot read it"
        return Finding("plugin_kernels", "problem", found, f"kernels for {device.capability}")
    shown = f"{plugin.name}: for {', '.join(sorted(held, key=release)) or 'no capability'}"
    if device.capability in held:
        return Finding("plugin_kernels", "ok", shown)
    return Finding("plugin_kernels", "problem", shown, f"for {device.capability}", again)


def device_memory(needs: Needs, device: DeviceFacts) -> Finding:
    """Whether all rows at their longest fit what is free."""
    if not device.free_memory:
        return Finding("out_of_memory", "warning", "free memory is not known", needs_text(needs))
    found = f"{size_text(device.free_memory)} free of {size_text(device.total_memory)}"
    if needs.total <= device.free_memory:
        return Finding("out_of_memory", "ok", f"{found}; needs {needs_text(needs)}")
    return Finding(
        "out_of_memory", "problem", found, needs_text(needs), fewer_rows(needs, device.free_memory)
    )


def needs_text(needs: Needs) -> str:
    """The sum, and what it is made of."""
    rows = "row" if needs.rows == 1 else "rows"
    cache, logits = needs.rows * needs.row_cache, needs.rows * needs.row_logits
    return (
        f"{size_text(needs.total)}: weights {size_text(needs.weights)}, cache {size_text(cache)} "
        f"and logits {size_text(logits)} for {needs.rows} {rows}, about "
        f"{size_text(needs.workspace)} to work in"
    )


def fewer_rows(needs: Needs, available: int) -> str:
    """What to ask for instead, so that it fits."""
    rows = needs.rows_within(available)
    if rows:
        return f"max_batch={rows} fits, or lower max_context"
    if needs.of(0) <= available:
        return "lower max_context: not even one row of that length fits"
    return "the weights alone do not fit: free memory, or build in a smaller precision"


def _capabilities(nvidia: NvidiaEntry) -> str:
    return ", ".join(nvidia.capabilities) + (" or later" if nvidia.later else "")


def _shown(device: DeviceFacts) -> str:
    return f"{device.name}, capability {device.capability}, {size_text(device.total_memory)}"
