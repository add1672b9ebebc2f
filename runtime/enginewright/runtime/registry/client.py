"""One repository of a registry, over the HTTP of the OCI distribution specification 1.1.

Every call survives a connection that drops: it is tried again. A download goes on where it ended;
the upload of a file begins anew, since registries drop what was cut off.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from enginewright.runtime.errors import (
    MissingDependencyError,
    NotInRegistryError,
    RegistryError,
)
from enginewright.runtime.registry.credentials import login_for
from enginewright.runtime.registry.reference import Reference

if TYPE_CHECKING:
    import requests

ATTEMPTS = 6
"""Of one call without any progress."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_TIMEOUT = (10, 60)
_PIECE = 1 << 16
_LARGEST_MANIFEST = 4 << 20
_NOT_FOUND = 404
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Repository:
    """``plain_http``: without TLS, which else only a registry on this machine is spoken to."""

    def __init__(self, reference: Reference, *, plain_http: bool = False) -> None:
        try:
            import requests
        except ImportError as error:
            raise MissingDependencyError(
                "registries need requests: pip install 'enginewright[oci]'"
            ) from error
        self._reference = reference
        scheme = "http" if plain_http or reference.is_local else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.repository}/"
        self._session = requests.Session()
        self._session.trust_env = not reference.is_local  # no proxy lies before this machine
        self._authorization: str | None = None

    def has_blob(self, digest: str) -> bool:
        """Whether the registry holds the content with that ``sha256:...``."""
        return self._retried("HEAD", f"blobs/{digest}", good=(200, _NOT_FOUND)).status_code == 200

    def upload(self, path: Path, digest: str) -> None:
        """Send a file's content; an upload that is cut off begins anew."""
        for attempt in _attempts(f"{path.name}: the upload", ", what is complete is kept"):
            with attempt:
                location = self._request("POST", "blobs/uploads/", good=(202,)).headers["Location"]
                with path.open("rb") as file:
                    self._request(
                        "PUT",
                        location,
                        params={"digest": digest},
                        data=file if path.stat().st_size else b"",
                        headers={"Content-Type": "application/octet-stream"},
                        good=(201,),
                    )
                return

    def upload_bytes(self, content: bytes, digest: str) -> None:
        """The same of a few bytes."""
        location = self._retried("POST", "blobs/uploads/", good=(202,)).headers["Location"]
        self._retried("PUT", location, params={"digest": digest}, data=content, good=(201,))

    def download(self, digest: str, size: int, path: Path) -> None:
        """Append to the file what it lacks of the content, which has so many bytes."""
        what = f"{path.name.removesuffix('.part')}: the download"
        for attempt in _attempts(what, ", what was fetched is kept"):
            have = path.stat().st_size if path.exists() else 0
            if have >= size:
                return
            with attempt:
                self._append(digest, size, path, have)
            now = path.stat().st_size if path.exists() else 0
            if now > have:
                attempt.progressed()

    def manifest(self) -> bytes:
        """The manifest that the reference names; raises NotInRegistryError where there is none."""
        accepted = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        try:
            answer = self._retried("GET", f"manifests/{self._reference.version}", headers=accepted)
        except RegistryError as error:
            if error.status == _NOT_FOUND:
                raise NotInRegistryError(str(error), error.status) from error
            raise
        content: bytes = answer.content
        if len(content) > _LARGEST_MANIFEST:
            raise RegistryError(f"{self._reference}: the manifest is too large to be one")
        return content

    def put_manifest(self, content: bytes, media_type: str) -> None:
        """Name what was uploaded."""
        path, headers = f"manifests/{self._reference.tag}", {"Content-Type": media_type}
        self._retried("PUT", path, data=content, headers=headers, good=(201,))

    def _append(self, digest: str, size: int, path: Path, have: int) -> None:
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={have}-"} if have else {}
        answer = self._request(
            "GET", f"blobs/{digest}", headers=headers, good=(200, 206), stream=True
        )
        resumed = answer.status_code == 206
        with answer, path.open("ab" if resumed else "wb") as file:
            left = size - (have if resumed else 0)
            for piece in answer.iter_content(_PIECE):
                file.write(piece[:left])
                left -= len(piece)
                if left < 0:
                    raise RegistryError(
                        f"{path.name}: more than the {size} bytes of its layer came"
                    )

    def _retried(self, method: str, url: str, **how: Any) -> requests.Response:
        answer: requests.Response
        for attempt in _attempts(f"{self._reference}: {method} {url}"):
            with attempt:
                answer = self._request(method, url, **how)
                break
        return answer

    def _request(
        self,
        method: str,
        url: str,
        *,
        good: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        **how: Any,
    ) -> requests.Response:
        """One call, with a login where the registry asks for one."""
        for final in (False, True):
            sent, place = dict(headers or {}), urljoin(self._base, url)
            at_home = urlsplit(place).netloc == self._reference.host
            if self._authorization is not None and at_home:
                sent["Authorization"] = self._authorization
            answer = self._session.request(method, place, headers=sent, timeout=_TIMEOUT, **how)
            if answer.status_code != 401 or final or not at_home:
                break
            self._authorization = self._authorized(answer.headers.get("WWW-Authenticate", ""))
            if hasattr(how.get("data"), "seek"):
                how["data"].seek(0)
        if answer.status_code in good:
            return answer
        if answer.status_code in _BUSY:
            raise _BusyError(f"status {answer.status_code}")
        raise RegistryError(self._refusal(method, url, answer), answer.status_code)

    def _authorized(self, challenge: str) -> str:
        """The header that answers a challenge, after a token was fetched where one is wanted."""
        login = login_for(self._reference.host)
        asked = dict(_CHALLENGE.findall(challenge))
        if challenge.lower().startswith("bearer") and "realm" in asked:
            params = {name: asked[name] for name in ("service", "scope") if name in asked}
            answer = self._session.get(asked["realm"], params=params, auth=login, timeout=_TIMEOUT)
            if answer.ok:
                told = answer.json()
                return f"Bearer {told.get('token') or told.get('access_token')}"
        elif login is not None:
            import requests

            probe = requests.Request(url=self._base, auth=login).prepare()
            return str(probe.headers["Authorization"])
        raise RegistryError(
            f"{self._reference}: the registry asks for a login; log in with docker login, podman "
            f"login or oras login {self._reference.host}"
        )

    def _refusal(self, method: str, url: str, answer: requests.Response) -> str:
        try:
            said = "; ".join(str(each["message"]) for each in answer.json()["errors"])
        except (ValueError, KeyError, TypeError):
            said = answer.reason
        hint = {
            401: "; the login was not accepted",
            403: "; the login may not do this",
            _NOT_FOUND: "; is the name right, and was it pushed?",
        }.get(answer.status_code, "")
        what = url.partition("?")[0]
        return f"{self._reference}: {method} {what}: {answer.status_code} {said}{hint}"


class _BusyError(Exception):
    """An answer that may be another one a little later."""


class _Attempt:
    """Swallows what a dropped connection raises, until there were too many in a row."""

    def __init__(self, what: str, kept: str) -> None:
        self._what, self._kept = what, kept
        self.failures = 0

    def progressed(self) -> None:
        self.failures = min(self.failures, 1)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        import requests

        dropped = (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            _BusyError,
        )
        if not isinstance(error, dropped):
            if isinstance(error, requests.RequestException):
                raise RegistryError(f"{self._what}: {error}") from error
            return False
        self.failures += 1
        if self.failures >= ATTEMPTS:
            raise RegistryError(
                f"{self._what} failed {self.failures} times ({_reason(error)}); "
                f"try again{self._kept}"
            ) from error
        return True


def _reason(error: BaseException | None) -> str:
    """What the system says, where the libraries between tell it by their own objects."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)


def _attempts(what: str, kept: str = "") -> Iterator[_Attempt]:
    """``kept``: what is told of the next try."""
    attempt = _Attempt(what, kept)
    while True:
        yield attempt
        if attempt.failures:
            time.sleep(min(_FIRST_WAIT * 2 ** (attempt.failures - 1), _LONGEST_WAIT))
