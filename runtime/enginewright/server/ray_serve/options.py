"""What Ray Serve is told: how many replicas, when there are more, what each needs.

Imports nothing of the extra ``ray``, so that the command's help needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from enginewright.runtime.errors import EnginewrightError

APPLICATION = "enginewright"


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Counts of replicas, and what one takes of its machine.

    ``target_ongoing_requests``: the replicas grow until each has so many, running and waiting;
    None: as many as its engine runs together. ``upscale_delay``, ``downscale_delay``: how many
    seconds there must be too many, or too few, before a replica comes or goes. ``prefix_aware``:
    requests that begin alike go to the replica that has computed the beginning, while its queue is
    not much longer than others'.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float | None = None
    upscale_delay: float = 10.0
    downscale_delay: float = 600.0
    prefix_aware: bool = True
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if each.name == "prefix_aware":
                legal, fits = "true or false", isinstance(value, bool)
            elif each.name.endswith("replicas"):
                legal, fits = "a count from 1", isinstance(value, int) and number and value >= 1
            elif each.name == "target_ongoing_requests":
                legal, fits = "a number above 0", value is None or (number and value > 0)
            else:
                legal, fits = "a number from 0", number and value >= 0
            if not fits:
                raise EnginewrightError(f"{each.name}={value!r:.80} is not legal: {legal}")
        if self.max_replicas < self.min_replicas:
            raise EnginewrightError(
                f"max_replicas={self.max_replicas} is less than min_replicas={self.min_replicas}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From plain data."""
        legal = [each.name for each in fields(cls)]
        for name in given:
            if name not in legal:
                raise EnginewrightError(
                    f"ray: {name!r:.80} is not legal: there are {', '.join(legal)}"
                )
        return cls(**given)
