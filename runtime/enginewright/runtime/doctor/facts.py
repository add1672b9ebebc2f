"""What the checks look at, as plain data: a GPU, a host, and what is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.errors import EnginewrightError

_DEVICE = re.compile(r"(?P<capability>\d{1,2}\.\d)(:(?P<amount>\d+(\.\d+)?)(?P<unit>[MG]i?B))?")
_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_LEAST, _MOST = 2**28, 2**42


@dataclass(frozen=True)
class DriverFacts:
    """NVIDIA's driver and its GPUs, in its order; engines run on the first.

    ``problem``: why the driver cannot be used, if it cannot. ``described``: somebody told of the
    GPU, it is not here; then what nobody told is empty, and memory 0.
    """

    problem: str | None = None
    version: str | None = None
    devices: tuple[DeviceFacts, ...] = ()
    described: bool = False


@dataclass(frozen=True)
class HostFacts:
    """The machine. ``available_bytes``: memory that this process may still take.

    ``features`` are the processor's as the system names them, or None where it does not.
    """

    platform: str
    processor: str
    available_bytes: int | None = None
    features: frozenset[str] | None = None


@dataclass(frozen=True)
class InstalledPlugin:
    """A plugin that this enginewright brings; ``abi`` as in manifest.PluginEntry."""

    version: str
    namespace: str
    abi: str


@dataclass(frozen=True)
class Installed:
    """Software: versions by distribution, the least versions that this enginewright asks for, and
    its plugins by name."""

    versions: Mapping[str, str] = field(default_factory=dict)
    least: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, InstalledPlugin] = field(default_factory=dict)


def described_device(text: str) -> DriverFacts:
    """The device that ``text`` describes: a compute capability, and its memory if that is given.

    Raises EnginewrightError for anything else than such as "8.6" or "8.6:24GiB".
    """
    found = _DEVICE.fullmatch(text.strip())
    if found is None:
        raise EnginewrightError(
            f"device {text!r:.80}: not a description of a device; legal is a compute capability, "
            f"and after a colon its memory in MB, GB, MiB or GiB, such as 8.6 or 8.6:24GiB"
        )
    memory = 0.0
    if found["amount"] is not None:
        memory = float(found["amount"]) * _UNITS[found["unit"]]
        if not _LEAST <= memory <= _MOST:
            raise EnginewrightError(
                f"device {text!r:.80}: no GPU has such a memory; legal is 256MiB to 4096GiB"
            )
    device = DeviceFacts("described device", found["capability"], "", int(memory), int(memory))
    return DriverFacts(devices=(device,), described=True)
