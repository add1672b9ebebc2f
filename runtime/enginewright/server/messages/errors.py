"""What /openapi.json says of errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any

from enginewright.server.endpoints.documented import ERRORS
from enginewright.server.messages.schema import AnthropicError

TOLD: dict[int | str, dict[str, Any]] = {
    status: {"model": AnthropicError, "description": told["description"]}
    for status, told in ERRORS.items()
}
