"""A policy: which artifacts may be used here, and whether code of theirs may run.

| field       | value                                                                         |
|-------------|-------------------------------------------------------------------------------|
| signed_by   | files of public keys; one signature of any of them is enough                  |
| sources     | patterns of what it may be built from: hub:owner/*, package:..., sha256:...   |
| native_code | never; own: what this machine compiled or the installed package brings; any: |
|             | whatever passed the fields above                                              |

What an artifact says of its source is only as good as who signed it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from enginewright.runtime.artifact.artifact import Artifact, Verify
from enginewright.runtime.errors import PolicyError, SettingsError
from enginewright.runtime.trust.provenance import source_uri
from enginewright.runtime.trust.signing import check_signature

NativeCode = Literal["never", "own", "any"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """See the module's table; ``sources`` None: any."""

    signed_by: tuple[Path, ...] = ()
    sources: tuple[str, ...] | None = None
    native_code: NativeCode = "own"

    def __post_init__(self) -> None:
        if self.native_code not in get_args(NativeCode):
            legal = ", ".join(get_args(NativeCode))
            raise SettingsError(f"native_code: {self.native_code!r} is not legal; legal: {legal}")

    @classmethod
    def of(cls, data: Any, where: str = "policy", folder: Path | None = None) -> Policy:
        """The policy of plain data; keys' relative paths start at ``folder``.

        Raises SettingsError with the field, its value and what is legal.
        """
        legal = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or not data:
            raise SettingsError(f"{where}: must map some of {', '.join(legal)} to values")
        for name in data:
            if name not in legal:
                near = difflib.get_close_matches(str(name), legal, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise SettingsError(f"{where}: {name}: {hint}legal: {', '.join(legal)}")
        keys = _texts(data, "signed_by", where)
        if keys == ():
            raise SettingsError(f"{where}: signed_by: names no key; leave it out to ask for none")
        rule = {"native_code": data["native_code"]} if "native_code" in data else {}
        try:
            return cls(
                signed_by=tuple((folder or Path()) / key for key in keys or ()),
                sources=_texts(data, "sources", where),
                **rule,
            )
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from error

    def as_data(self) -> dict[str, Any]:
        """Plain data that ``of`` reads back in any folder."""
        data: dict[str, Any] = {"native_code": self.native_code}
        if self.signed_by:
            data["signed_by"] = [str(key.absolute()) for key in self.signed_by]
        return data if self.sources is None else data | {"sources": list(self.sources)}

    def check(self, artifact: Artifact, verify: Verify) -> None:
        """Raise PolicyError, or SignatureError below it, unless the artifact may be used.

        ``verify``: how its files were checked when it was opened.
        """
        if self.signed_by:
            if verify == "never":
                raise PolicyError(
                    f"{artifact.path}: the policy asks for a signature, and verify='never' leaves "
                    f"the weights that are signed unread; use 'cached' or 'always'"
                )
            check_signature(artifact, self.signed_by)
        if self.sources is not None and not self._is_known(artifact):
            raise PolicyError(
                f"{artifact.path}: was built from {' = '.join(_names(artifact)[::2])}, which the "
                f"policy does not list; its sources are {', '.join(self.sources) or 'none'}"
            )

    def native_rule(self, asked: bool | None) -> bool | None:
        """What ``allow_native_code`` is under the policy; raises PolicyError for too much."""
        if asked and self.native_code != "any":
            raise PolicyError(
                f"allow_native_code=True (--allow-native-code): the policy says native_code: "
                f"{self.native_code}; leave it out, or change the policy"
            )
        if self.native_code == "never":
            return False
        return True if asked is None and self.native_code == "any" else asked

    def _is_known(self, artifact: Artifact) -> bool:
        return any(
            fnmatchcase(name, pattern)
            for name in _names(artifact)
            for pattern in self.sources or ()
        )


def read_policy(policy: Policy | Mapping[str, Any] | None) -> Policy | None:
    """The argument of LLM: a policy, or plain data of one."""
    return policy if policy is None or isinstance(policy, Policy) else Policy.of(policy)


def _names(artifact: Artifact) -> list[str]:
    """What a pattern may match: the source with and without its revision, and its digest."""
    uri, source = source_uri(artifact.manifest), artifact.manifest.source
    return [uri, f"{uri}@{source.revision}", source.digest]


def _texts(data: Mapping[str, Any], name: str, where: str) -> tuple[str, ...] | None:
    given = data.get(name)
    if given is None and name not in data:
        return None
    if not isinstance(given, (list, tuple)):
        raise SettingsError(f"{where}: {name}: {given!r:.80} is not legal; it must be a list")
    for one in given:
        if not isinstance(one, (str, Path)):
            raise SettingsError(
                f"{where}: {name}: {one!r:.80} is not legal; each of the list must be a text"
            )
    return tuple(str(text) for text in given)
