"""``oci://`` names: what they say, and what is none."""

from __future__ import annotations

import pytest

from enginewright.runtime.errors import RegistryError
from enginewright.runtime.registry.reference import Reference

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci://host/model", Reference("host", "model", "latest")),
        ("oci://host:5000/a/b-c_d.e:v1.0", Reference("host:5000", "a/b-c_d.e", "v1.0")),
        (f"oci://host/a:b@sha256:{DIGEST}", Reference("host", "a", "b", DIGEST)),
        (f"oci://host/a@sha256:{DIGEST}", Reference("host", "a", "latest", DIGEST)),
        ("oci://[::1]:5000/a", Reference("[::1]:5000", "a", "latest")),
    ],
)
def test_what_a_name_says(text: str, reference: Reference) -> None:
    assert Reference.parse(text) == reference
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host/model",
        "https://host/model",
        "oci://host",
        "oci://host/",
        "oci://host/Model",
        "oci://host/a b",
        "oci://host/../a",
        "oci://user@host/a",
        "oci://host/a:",
        "oci://host/a@sha256:12",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(RegistryError, match="the form is oci://"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_only_this_machine_is_spoken_to_without_tls(host: str, local: bool) -> None:
    assert Reference(host, "a").is_local is local
