"""Who asks a registry: the logins that docker, podman and oras keep in their config files."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator
from pathlib import Path

Login = tuple[str, str]


def login_for(host: str) -> Login | None:
    """User and password for a host; None: nobody in particular."""
    for path in _files():
        try:
            entry = json.loads(path.read_text("utf-8"))["auths"][host]
            user, colon, password = base64.b64decode(entry["auth"]).decode().partition(":")
        except (OSError, ValueError, KeyError, TypeError, binascii.Error):
            continue
        if colon:
            return user, password
    return None


def _files() -> Iterator[Path]:
    if folder := os.environ.get("DOCKER_CONFIG"):
        yield Path(folder) / "config.json"
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(path)
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(folder) / "containers" / "auth.json"
    home = os.environ.get("HOME")
    if home:
        yield Path(home) / ".docker" / "config.json"
