"""Compute capabilities: what TensorRT-RTX builds for, and what each of them can calculate.

| capability | GPUs                | fp16, int8, int4 | bf16 | fp8 | nvfp4 |
|------------|---------------------|------------------|------|-----|-------|
| 7.5        | Turing              | yes              |      |     |       |
| 8.0, 8.6   | Ampere              | yes              | yes  |     |       |
| 8.9        | Ada                 | yes              | yes  | yes |       |
| 12.0, 12.1 | Blackwell           | yes              | yes  | yes | yes   |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from enginewright.runtime.errors import RecipeError

RTX: Mapping[str, str] = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
}
"""What TensorRT-RTX builds for, and the member of its ComputeCapability."""

PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""TensorRT-RTX's own choice where nothing is chosen; such an engine runs on later GPUs as well."""

WITH_KERNELS = (*PORTABLE, "12.1")
"""The choice with kernels of our own: each needs its own binary, so later GPUs are left out."""

_LOWEST: Mapping[str, str] = {"bf16": "8.0", "fp8": "8.9", "nvfp4": "12.0"}
"""The first capability that has a precision; those that are not here are on all."""


def chosen(attention: str, capabilities: Sequence[str] | None) -> tuple[str, ...]:
    """The capabilities that TensorRT-RTX builds for where the recipe names these, or none."""
    if capabilities is not None:
        return tuple(capabilities)
    return WITH_KERNELS if attention == "plugin" else PORTABLE


def refusal(precision: str, capabilities: Sequence[str]) -> str | None:
    """Why an engine of that precision cannot run on all of these; None if it can.

    A cache in fp8 is no matter of it: the kernels decode it where a GPU does not.
    """
    lowest = _LOWEST.get(precision, "0.0")
    without = [name for name in capabilities if _order(name) < _order(lowest)]
    if not without:
        return None
    able = [f'"{name}"' for name in RTX if _order(name) >= _order(lowest)]
    return (
        f"precision {precision}: GPUs of compute capability {', '.join(without)} do not have it, "
        f"and one engine must be legal on all that it is built for; give capabilities: "
        f"[{', '.join(able)}], or some of them, or another precision"
    )


def check(precision: str, capabilities: Sequence[str]) -> None:
    """Raise RecipeError where one of the capabilities lacks the precision."""
    reason = refusal(precision, capabilities)
    if reason is not None:
        raise RecipeError(reason)


def _order(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
