"""What is wrong with a graph that is interpreted."""

from __future__ import annotations

from enginewright.runtime.errors import BuildError


class GraphError(BuildError):
    """A graph that cannot be interpreted: an unknown op, types that differ, a shape that is not
    the declared one. The message names the node or the tensor."""
