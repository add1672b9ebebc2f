"""What a check found, and the error that a load raises for the first that forbids it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from enginewright.runtime.doctor.codes import Code
from enginewright.runtime.errors import DeviceCode, DeviceError, MissingDependencyError

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check's answer. ``needed`` and ``action`` are empty where all is well.

    A warning does not keep the engine from running; a problem does.
    """

    code: Code
    status: Status
    found: str
    needed: str = ""
    action: str = ""

    def __str__(self) -> str:
        needed = f"; needed: {self.needed}" if self.needed else ""
        action = f". {self.action}" if self.action else ""
        return f"{self.found}{needed}{action}"


def refuse(where: str, findings: Iterable[Finding]) -> None:
    """Raise for the first problem among ``findings``, DeviceError with its code.

    A package that is not installed is a MissingDependencyError. ``where`` opens the message.
    """
    for finding in findings:
        if finding.status != "problem":
            continue
        message = f"{where}: {finding}"
        if finding.code == "package_missing":
            raise MissingDependencyError(message)
        assert finding.code in get_args(DeviceCode)
        raise DeviceError(message, cast(DeviceCode, finding.code))
