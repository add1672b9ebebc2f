"""Names of artifacts in registries: ``oci://host[:port]/repository[:tag][@sha256:digest]``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from enginewright.runtime.errors import RegistryError

_FORM = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)"
    r"/(?P<repository>[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@sha256:(?P<digest>[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """Where an artifact is; ``digest`` (hex): of the one registry's manifest that will do."""

    host: str
    repository: str
    tag: str = "latest"
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises RegistryError for another form."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise RegistryError(
                f"{text!r:.200} names no artifact in a registry; the form is "
                f"oci://host[:port]/repository[:tag][@sha256:digest], the repository in lower case"
            )
        found = match.groupdict()
        return cls(found["host"], found["repository"], found["tag"] or "latest", found["digest"])

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where registries speak plain HTTP."""
        name = re.sub(r":\d+$", "", self.host).strip("[]")
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    @property
    def version(self) -> str:
        """What the registry is asked for."""
        return f"sha256:{self.digest}" if self.digest else self.tag

    def __str__(self) -> str:
        pinned = f"@sha256:{self.digest}" if self.digest else ""
        return f"oci://{self.host}/{self.repository}:{self.tag}{pinned}"
